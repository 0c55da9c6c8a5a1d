"""The sweep of an ablation over machines, with stand-ins that write down how they were called."""

import shutil

import pytest

from support.cluster import BASH, ROOT, Cluster

CELLS = "small\\nlarge\\nrate=0.5\\n"


@pytest.fixture
def sweep(tmp_path):
    """A project with launch/ and a stand-in for the program, which knows three cells."""
    cluster = Cluster(tmp_path, "sbatch", "gcloud")
    project = tmp_path / "project"
    shutil.copytree(ROOT / "launch", project / "launch")
    program = project / ".venv/bin/jaxpretrain"
    program.parent.mkdir(parents=True)
    program.write_text(
        f"""#!{BASH}
printf '%q ' "${{0##*/}}" "$@" >>"$CALLS"; echo >>"$CALLS"
case "$*" in *--list*) printf '{CELLS}' ;; esac
"""
    )
    program.chmod(0o755)
    cluster.script = str(project / "launch/sweep.sh")
    return cluster


CONFIG = ("--config=configs/ablations/mask_rate.py", "--config.seed=3")
ABLATE = "ablate --config=configs/ablations/mask_rate.py --workdir=%s --config.seed=3"


def test_a_slurm_array_has_a_task_for_each_cell(sweep):
    done = sweep.run(
        sweep.script,
        "--on=slurm",
        *CONFIG,
        "--workdir=/shared/a b",
        "--at-once=2",
        "--",
        "--nodes=1",
    )
    assert done.returncode == 0, done.stderr
    listed, prepared, submitted = sweep.calls
    ablate = ABLATE % "/shared/a\\ b"
    assert (listed, prepared) == (f"jaxpretrain {ablate} --list", f"jaxpretrain {ablate} --prepare")
    assert "--job-name=mask-rate --array=0-2%2" in submitted.replace("\\%", "%")
    assert "--nodes=1" in submitted and submitted.endswith(f"launch/slurm.sbatch {ablate}")


def test_a_task_of_the_array_runs_its_cell(sweep):
    cluster = Cluster(sweep.folder / "node", "srun", "scontrol")
    job = str(sweep.folder / "project/launch/slurm.sbatch")
    where = {"SLURM_SUBMIT_DIR": str(sweep.folder / "project"), "SLURM_JOB_ID": "7"}
    done = cluster.run(job, "ablate", "--config=a.py", SLURM_ARRAY_TASK_ID="2", **where)
    assert done.returncode == 0, done.stderr
    assert cluster.calls[0].endswith("jaxpretrain ablate --config=a.py --cell=2")
    done = cluster.run(job, "prepare", **where)
    assert done.returncode == 2 and "'prepare' is not train or ablate" in done.stderr


def test_each_cell_has_a_tpu_of_its_own_and_a_failure_stops_no_other(sweep):
    for _ in range(4):
        sweep.answer("tpu-vm describe", "READY")
    sweep.answer("ssh rates-1 --zone us-a --worker=0", "error: no such thing", 2)
    done = sweep.run(
        sweep.script, "--on=tpu", "--name=rates", *CONFIG, "--workdir=gs://b/w", "--at-once=1",
        "--", "--zone=us-a", "--type=v5litepod-8",
    )  # fmt: skip
    assert done.returncode == 1
    assert "1 of 3 cells failed: large" in done.stderr
    assert "cell large: failed with status 1 (see rates-1.log)" in done.stderr
    assert "error: no such thing" in (sweep.folder / "rates-1.log").read_text()
    begun = [call for call in sweep.calls if "--worker=all" in call and "nohup" in call]
    assert [f"rates-{n}" in call for n, call in enumerate(begun)] == [True] * 3
    for number, call in enumerate(begun):
        words = call.replace("\\", "")
        assert "jaxpretrain ablate --distributed" in words and f"--cell={number}" in words
    deleted = [call.split()[5] for call in sweep.calls if "tpu-vm delete" in call]
    assert deleted == ["rates-0", "rates-2"]


@pytest.mark.parametrize("on", ["slurm", "tpu"])
def test_a_dry_run_submits_nothing(sweep, on):
    done = sweep.run(
        sweep.script,
        f"--on={on}",
        *CONFIG,
        "--workdir=gs://b/w",
        "--dry-run",
        "--",
        "--zone=us-a",
        "--type=v5p-8",
    )
    assert done.returncode == 0, done.stderr
    (only,) = sweep.calls  # the list of cells
    assert only.endswith("--list")
    lines = done.stdout.splitlines()
    assert len(lines) == {"slurm": 2, "tpu": 4}[on] and "--prepare" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (CONFIG, "--on is missing"),
        (("--on=cloud", *CONFIG), "--on is 'cloud', not slurm or tpu"),
        (("--on=tpu",), "--config is missing"),
        (("--on=tpu", *CONFIG, "--at-once=0"), "--at-once is '0'"),
        (("--on=tpu", *CONFIG, "--zone=a"), "come after --"),
        (("--on=tpu", *CONFIG, "--workdir=runs/x"), "slices are deleted"),
        (("--on=tpu", *CONFIG), "slices are deleted"),
    ],
)
def test_wrong_arguments_are_said_before_anything_is_run(sweep, arguments, message):
    done = sweep.run(sweep.script, *arguments)
    assert done.returncode == 2 and message in done.stderr and sweep.calls == []
