"""The JobSet for Kubernetes and the bundle for machines without a network, with stand-ins."""

import subprocess
import tarfile

import pytest
import yaml

from support.cluster import BASH, Cluster

SLICE = ("--name=lm", "--image=repo/image:1", "--tpu=v5p:2x2x4")
TRAIN = ("--", "--config=c.py", '--config.source.path=a "b" $(HOME) \\n')


@pytest.fixture
def kubernetes(tmp_path):
    return Cluster(tmp_path, "kubectl")


def manifest(kubernetes):
    """What kubectl was given to apply."""
    return yaml.safe_load((kubernetes.folder / "calls.stdin").read_text())


def job_of(found):
    (replicated,) = found["spec"]["replicatedJobs"]
    return replicated["replicas"], replicated["template"]["spec"]


@pytest.mark.parametrize(
    ("tpu", "slices", "machines", "chips", "accelerator"),
    [
        ("v5p:2x2x4", 1, 4, 4, "tpu-v5p-slice"),
        ("v5e:4x4", 2, 4, 4, "tpu-v5-lite-podslice"),
        ("v5e:2x4", 1, 1, 8, "tpu-v5-lite-podslice"),
        ("v6e:1x1", 1, 1, 1, "tpu-v6e-slice"),
        ("v4:2x2x1", 1, 1, 4, "tpu-v4-podslice"),
    ],
)
def test_a_slice_has_a_pod_on_each_of_its_machines(
    kubernetes, tpu, slices, machines, chips, accelerator
):
    done = kubernetes.run(
        "launch/jobset.sh", *SLICE[:2], f"--tpu={tpu}", f"--slices={slices}", *TRAIN
    )
    assert done.returncode == 0, done.stderr
    replicas, job = job_of(manifest(kubernetes))
    assert (replicas, job["parallelism"], job["completions"]) == (slices, machines, machines)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": tpu.partition(":")[2],
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert container["command"] + container["args"][:1] == ["jaxpretrain", "train", "--distributed"]


def test_arguments_arrive_as_they_were_typed(kubernetes):
    kubernetes.run("launch/jobset.sh", *SLICE, *TRAIN)
    (container,) = job_of(manifest(kubernetes))[1]["template"]["spec"]["containers"]
    # Kubernetes makes $$( into $(, and would put a variable's value for $(HOME).
    assert [word.replace("$$(", "$(") for word in container["args"][1:]] == list(TRAIN[1:])
    assert "$$(HOME)" in container["args"][2]


def test_nodes_with_gpus_meet_at_the_first(kubernetes):
    done = kubernetes.run(
        "launch/jobset.sh", *SLICE[:2], "--gpus=8", "--nodes=3", "--namespace=ml", *TRAIN
    )
    assert done.returncode == 0, done.stderr
    found = manifest(kubernetes)
    replicas, job = job_of(found)
    assert (replicas, job["parallelism"]) == (1, 3) and "annotations" not in found["metadata"]
    (container,) = job["template"]["spec"]["containers"]
    assert container["args"][:3] == [
        "--coordinator=lm-train-0-0.lm:8476", "--processes=3", "--process=$(JOB_COMPLETION_INDEX)",
    ]  # fmt: skip
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert all("--namespace ml" in call for call in kubernetes.calls)
    assert "job-name=lm-train-0" in kubernetes.calls[-1]
    assert "job-completion-index=0" in kubernetes.calls[-1]  # the one that speaks


def test_only_wrong_arguments_end_it_for_good(kubernetes):
    kubernetes.run("launch/jobset.sh", *SLICE, "--restarts=7", "--grace=30", *TRAIN)
    found = manifest(kubernetes)
    policy, (_, job) = found["spec"]["failurePolicy"], job_of(found)
    assert policy["maxRestarts"] == 7
    assert [rule["action"] for rule in policy["rules"]] == ["FailJobSet"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2] and job["backoffLimit"] == 0
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] == 30
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_what_kubectl_refuses_is_shown(kubernetes):
    kubernetes.answer("apply", "error: no matches for kind JobSet", 1)
    done = kubernetes.run("launch/jobset.sh", *SLICE, *TRAIN)
    assert done.returncode == 1 and len(kubernetes.calls) == 1
    assert "no matches for kind JobSet" in done.stderr and "could not make" in done.stderr


def test_a_dry_run_prints_the_manifest_and_calls_nothing(kubernetes):
    done = kubernetes.run("launch/jobset.sh", *SLICE, "--dry-run", *TRAIN)
    assert done.returncode == 0 and kubernetes.calls == []
    text, *commands = done.stdout.split("kubectl ")
    assert yaml.safe_load(text)["kind"] == "JobSet"
    assert [command.split()[0] for command in commands] == ["apply", "wait", "logs"]
    done = kubernetes.run("launch/jobset.sh", "--name=lm", "--delete")
    assert done.returncode == 0 and kubernetes.calls == ["kubectl delete jobset lm"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*SLICE[1:], *TRAIN), "--name is missing"),
        (("--name=LM", *SLICE[1:], *TRAIN), "--name is 'LM'"),
        (("--name=lm", *SLICE[2:], *TRAIN), "--image is missing"),
        ((*SLICE[:2], *TRAIN), "--tpu or --gpus is missing"),
        ((*SLICE, "--gpus=8", *TRAIN), "exclude each other"),
        (SLICE, "no arguments for training"),
        ((*SLICE[:2], "--tpu=v9:2x2", *TRAIN), "of kind 'v9'"),
        ((*SLICE[:2], "--tpu=v5e", *TRAIN), "not like v5e:4x4"),
        ((*SLICE[:2], "--tpu=v5e:3x3", *TRAIN), "9 chips are not whole machines of 4"),
        ((*SLICE, "--slices=0", *TRAIN), "--slices is '0'"),
        ((*SLICE, "--", "a\nb"), "control character"),
    ],
)
def test_wrong_arguments_are_said_before_anything_is_made(kubernetes, arguments, message):
    done = kubernetes.run("launch/jobset.sh", *arguments)
    assert done.returncode == 2 and message in done.stderr and kubernetes.calls == []


# ------------------------------------------------------------------------------------ bundle


@pytest.fixture
def packing(tmp_path):
    """A Python that answers for its version, and collects no wheels."""
    cluster = Cluster(tmp_path, "python3.13")
    for _ in range(2):
        cluster.answer("sys.version_info <")
        cluster.answer("%d.%d", "3.13")
    return cluster


def test_a_bundle_has_the_source_and_says_what_its_wheels_are_for(packing):
    done = packing.run("launch/bundle.sh", "--device=cuda12", PYTHON="python3.13")
    assert done.returncode == 0, done.stderr
    (wheels,) = [call for call in packing.calls if "pip wheel" in call]
    assert "source\\[cuda12\\,parquet\\,tfds\\]" in wheels, wheels
    with tarfile.open(packing.folder / "jaxpretrain-cuda12.tar.gz") as bundle:
        names = set(bundle.getnames())
        bundle.extractall(packing.folder, filter="data")
    top = "jaxpretrain-cuda12"
    assert {f"{top}/setup.cfg", f"{top}/launch/local.sh", f"{top}/jaxpretrain/main.py"} <= names
    assert not any("/.git/" in name or "/.venv" in name or "__pycache__" in name for name in names)
    # The scripts of the bundle install from it.
    script = f"""
        . "{packing.folder}/{top}/launch/env.sh"
        echo "$PIP_NO_INDEX $PIP_FIND_LINKS $JAXPRETRAIN_DEVICE $JAXPRETRAIN_EXTRAS $PYTHON"
    """
    told = subprocess.run([BASH, "-c", script], capture_output=True, text=True, env={})
    wheels = packing.folder.resolve() / top / "wheels"
    assert told.stdout.strip() == f"1 {wheels} cuda12 tfds,parquet python3.13", told.stderr


def test_a_dry_run_of_the_bundle_packs_nothing(packing):
    done = packing.run("launch/bundle.sh", "--device=cpu", "--dry-run", PYTHON="python3.13")
    assert done.returncode == 0, done.stderr
    assert "-m pip wheel" in done.stdout and "tar -czf jaxpretrain-cpu.tar.gz" in done.stdout
    assert not any("pip" in call for call in packing.calls)
    assert not list(packing.folder.glob("*.tar.gz"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device=gpu",), "--device is 'gpu', not cpu, cuda12, cuda13 or tpu"),
        (("--output=none/x.tar.gz",), "there is no folder none"),
        (("now",), "unknown argument 'now' (see launch/bundle.sh --help)"),
    ],
)
def test_wrong_arguments_of_the_bundle(packing, arguments, message):
    done = packing.run("launch/bundle.sh", *arguments)
    assert done.returncode == 2 and message in done.stderr
