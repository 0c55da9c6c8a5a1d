"""The scripts for Cloud TPUs and SLURM, with stand-ins that write down how they were called."""

import subprocess

import pytest

from support.cluster import BASH, Cluster


@pytest.fixture
def cloud(tmp_path):
    return Cluster(tmp_path, "gcloud")


TPU = ("--name=lm", "--zone=us-a", "--type=v5litepod-16")
TRAIN = ("--", "--config=configs/llama_1b.py", "--config.source.path=a b")
MISSING = ("tpu-vm describe", "ERROR: NOT_FOUND: no such node", 1)


def kinds(calls):
    """What each call of gcloud is about."""
    return [" ".join(call.split()[3:5]) for call in calls]


def test_a_tpu_is_made_installed_on_used_and_deleted(cloud):
    cloud.answer(*MISSING)
    done = cloud.run("launch/tpu_vm.sh", *TPU, "--spot", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert kinds(cloud.calls) == [
        "tpu-vm describe", "tpu-vm create", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh", "tpu-vm ssh",
        "tpu-vm delete",
    ]  # fmt: skip
    create, copy, install, begin, follow = cloud.calls[1:6]
    assert "--accelerator-type v5litepod-16 --version v2-alpha-tpuv5-lite --spot" in create
    assert all("lm" in call and "--zone us-a" in call for call in cloud.calls)
    assert all("--worker=all" in call for call in (copy, install, begin))
    assert "--install-only" in install and "--worker=0" in follow
    assert "jaxpretrain train --distributed" in begin.replace("\\ ", " ")
    assert "a\\ b" in begin.replace("\\\\", "\\") and "nohup" in begin


def test_the_command_that_the_workers_get_runs_and_keeps_its_status(cloud, tmp_path):
    """As a shell of the worker would run it, with a stand-in for the program."""
    cloud.answer(*MISSING)
    cloud.run("launch/tpu_vm.sh", *TPU, *TRAIN)
    home = tmp_path / "home"
    program = home / "jaxpretrain/.venv/bin/jaxpretrain"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!{BASH}\nprintf "<%s>" "$@"\necho\nexit 75\n')
    program.chmod(0o755)
    for call, status in ((cloud.calls[4], 0), (cloud.calls[5], 75)):
        # The last word of the call, unquoted by the shell that quoted it.
        shell = f'words=({call}); exec {BASH} -c "${{words[-1]}}"'
        done = subprocess.run([BASH, "-c", shell], cwd=home, capture_output=True, text=True)
        assert done.returncode == status, done
    expected = "<train><--distributed><--config=configs/llama_1b.py><--config.source.path=a b>"
    assert done.stdout.strip() == expected


def test_a_second_call_uses_what_is_there(cloud):
    cloud.answer("tpu-vm describe", "READY")
    done = cloud.run("launch/tpu_vm.sh", *TPU, "--keep", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert "tpu-vm create" not in kinds(cloud.calls)
    assert "tpu-vm delete" not in kinds(cloud.calls)


def test_a_preempted_tpu_is_made_again_and_the_run_goes_on(cloud):
    cloud.answer("tpu-vm describe", "READY")
    cloud.answer("--worker=0", "connection lost", 255)
    cloud.answer("tpu-vm describe", "PREEMPTED")
    cloud.answer("tpu-vm describe", "PREEMPTED")
    done = cloud.run("launch/tpu_vm.sh", *TPU, *TRAIN)
    assert done.returncode == 0, done.stderr
    after = kinds(cloud.calls)[kinds(cloud.calls).index("tpu-vm delete") :]
    assert after == [
        "tpu-vm delete", "tpu-vm create", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh", "tpu-vm ssh",
        "tpu-vm delete",
    ]  # fmt: skip
    assert "preempted: lm is PREEMPTED" in done.stderr


def test_a_run_that_was_told_to_stop_goes_on(cloud):
    for _ in range(3):
        cloud.answer("tpu-vm describe", "READY")
    cloud.answer("--worker=0", "", 75)
    done = cloud.run("launch/tpu_vm.sh", *TPU, *TRAIN)
    assert done.returncode == 0 and "ended with status 75; going on" in done.stderr


def test_a_run_that_failed_leaves_the_tpu_and_says_so(cloud):
    cloud.answer("tpu-vm describe", "READY")
    cloud.answer("--worker=0", "error: no such config", 2)
    cloud.answer("tpu-vm describe", "READY")
    done = cloud.run("launch/tpu_vm.sh", *TPU, *TRAIN)
    assert done.returncode == 1
    assert "no such config" in done.stderr and "ended with status 2" in done.stderr
    assert "tpu-vm delete" not in kinds(cloud.calls)


@pytest.mark.parametrize("queued", [False, True])
def test_no_quota_and_no_capacity_are_shown(cloud, queued):
    cloud.answer(*MISSING)
    cloud.answer("create", "ERROR: Quota 'TPUS' exceeded. Limit: 0", 1)
    done = cloud.run("launch/tpu_vm.sh", *TPU, *(["--queued"] if queued else []), *TRAIN)
    assert done.returncode == 1
    assert "Quota 'TPUS' exceeded" in done.stderr and "could not" in done.stderr
    assert len(cloud.calls) == 2


def test_a_queued_tpu_is_waited_for_and_its_failure_shown(cloud):
    cloud.answer(*MISSING)
    for answer in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"):
        cloud.answer("queued-resources describe", answer)
    done = cloud.run("launch/tpu_vm.sh", *TPU, "--queued", "--spot", *TRAIN)
    assert done.returncode == 0, done.stderr
    create = next(call for call in cloud.calls if "queued-resources create" in call)
    assert "--node-id lm" in create and "--runtime-version" in create and "--spot" in create
    assert "WAITING_FOR_RESOURCES" in done.stderr
    assert kinds(cloud.calls)[-1] == "queued-resources delete"
    cloud.answer(*MISSING)
    cloud.answer("queued-resources describe", "FAILED")
    cloud.answer("queued-resources describe", "no more capacity in us-a")
    done = cloud.run("launch/tpu_vm.sh", *TPU, "--queued", *TRAIN)
    assert done.returncode == 1
    assert "is FAILED" in done.stderr and "no more capacity" in done.stderr


def test_a_dry_run_calls_nothing(cloud):
    done = cloud.run("launch/tpu_vm.sh", *TPU, "--dry-run", *TRAIN)
    assert done.returncode == 0 and cloud.calls == []
    lines = done.stdout.splitlines()
    assert lines[0].startswith("gcloud compute tpus tpu-vm create lm --zone us-a")
    assert lines[-1] == "gcloud compute tpus tpu-vm delete lm --zone us-a --quiet"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--zone=a", "--type=v4-8", *TRAIN), "--name is missing"),
        (("--name=a", "--type=v4-8", *TRAIN), "--zone is missing"),
        (("--name=a", "--zone=b", *TRAIN), "--type is missing"),
        ((*TPU,), "no arguments for training"),
        ((*TPU, "--config=x"), "unknown argument '--config=x': arguments for training come after"),
        (("--name",), "--name needs a value"),
    ],
)
def test_wrong_arguments_are_said_before_anything_is_paid_for(cloud, arguments, message):
    done = cloud.run("launch/tpu_vm.sh", *arguments)
    assert done.returncode == 2 and message in done.stderr and cloud.calls == []


@pytest.fixture
def slurm(tmp_path):
    cluster = Cluster(tmp_path, "srun", "scontrol")
    program = tmp_path / "project/.venv/bin/jaxpretrain"
    program.parent.mkdir(parents=True)
    program.write_text("")
    program.chmod(0o755)
    return cluster


def job(slurm, *arguments):
    root = str(slurm.folder / "project")
    return slurm.run("launch/slurm.sbatch", *arguments, SLURM_SUBMIT_DIR=root, SLURM_JOB_ID="7")


def test_a_job_starts_one_process_for_each_task(slurm):
    done = job(slurm, "--config=a.py", "--workdir=a b")
    assert done.returncode == 0, done.stderr
    program = slurm.folder / "project/.venv/bin/jaxpretrain"
    expected = f"srun --kill-on-bad-exit=1 {program} train --config=a.py --workdir=a\\ b"
    assert slurm.calls == [expected]
    dry = job(slurm, "--dry-run", "--config=a.py", "--workdir=a b")
    assert dry.stdout.strip() == expected and slurm.calls == [expected]


@pytest.mark.parametrize("status", [75, 2])
def test_a_preempted_job_is_queued_again_and_a_failed_one_is_not(slurm, status):
    slurm.answer("train", "", status)
    done = job(slurm, "--config=a.py")
    assert done.returncode == status
    assert [call for call in slurm.calls if "scontrol" in call] == (
        ["scontrol requeue 7"] if status == 75 else []
    )


def test_of_an_array_only_the_preempted_task_is_queued_again(slurm):
    slurm.answer("ablate", "", 75)
    where = {"SLURM_SUBMIT_DIR": str(slurm.folder / "project"), "SLURM_JOB_ID": "7"}
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    slurm.run("launch/slurm.sbatch", "ablate", "--config=a.py", **where, **array)
    assert slurm.calls[-1] == "scontrol requeue 7_2"


def test_a_job_without_arguments_or_environment_says_so(slurm, tmp_path):
    assert "no arguments" in job(slurm).stderr
    done = slurm.run("launch/slurm.sbatch", "--config=a.py", SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2 and "local.sh --install-only" in done.stderr
