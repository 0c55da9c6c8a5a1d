"""The launch scripts, run in a project of their own with stand-ins for Python and nvidia-smi.

PATH holds the stand-ins and the few system tools that the scripts may use, nothing else, so what
this machine has (a GPU, other Pythons) makes no difference.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(ROOT.glob("launch/*.s[hb]*")) + [ROOT / ".ci/run"]
TOOLS = (
    "bash cat cut dirname env grep head id mkdir mv nproc paste rm sed sort tail tr uname".split()
)
BASH = shutil.which("bash") or "bash"

# Answers what the scripts ask of Python and writes down what they have it install.
PYTHON = f"""#!{BASH}
case "$*" in
  '-m venv '*)
    {{venv}}
    echo venv >>"$CALLS"
    mkdir -p "$3/bin"
    {shutil.which("cp")} "$0" "$3/bin/python"
    ;;
  '-m pip '*)
    for last; do :; done
    echo "pip $last" >>"$CALLS"
    echo 'pip was here'
    exit "$PIP_EXIT"
    ;;
  '-m pytest '*) echo "$JAX_PLATFORMS: $*" ;;
  *base_prefix*) echo '{{identity}}' ;;
  *ensurepip*) exit 1 ;;
  *) exec {sys.executable} "$@" ;;
esac
"""


def python(*, identity: str = "3.11 /usr", venv: str = "") -> str:
    return PYTHON.format(identity=identity, venv=venv)


# The parts of real output that the scripts read: a list of GPUs, the banner, a table of one column.
NVIDIA_SMI = f"""#!{BASH}
case "$1" in
  -L) echo '{{listing}}'; exit {{status}} ;;
  --query-gpu=compute_cap) printf '{{capability}}' ;;
  *) echo '| NVIDIA-SMI 580.65.06    Driver Version: 580.65.06    {{cuda}}     |' ;;
esac
"""


class Project:
    """A copy of launch/ in a folder with a setup.cfg, and a PATH of stand-ins."""

    def __init__(self, folder: Path):
        self.root = folder / "a project"
        self.bin = folder / "bin"
        self.calls = folder / "calls"
        self.hardware = folder / "hardware"
        for made in (self.root, self.bin, self.hardware / "dev"):
            made.mkdir(parents=True)
        shutil.copytree(ROOT / "launch", self.root / "launch")
        for name in ("setup.cfg", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root)
        (self.root / "configs").mkdir()
        (self.root / "configs/quickstart.py").touch()
        for tool in TOOLS:
            if path := shutil.which(tool):
                (self.bin / tool).symlink_to(path)
        self.add("python3", python())

    def add(self, name: str, text: str, folder: Path | None = None) -> None:
        path = (folder or self.bin) / name
        path.unlink(missing_ok=True)  # never write through a link to a tool of the system
        path.write_text(text)
        path.chmod(0o755)

    def add_gpu(
        self,
        *,
        cuda: str = "CUDA Version: 12.8",
        listing: str = "GPU 0: NVIDIA H100 (UUID: GPU-1)",
        status: int = 0,
        capability: str = "9.0\\n",
    ) -> None:
        text = NVIDIA_SMI.format(cuda=cuda, listing=listing, status=status, capability=capability)
        self.add("nvidia-smi", text)

    def add_node(self, path: str) -> None:
        node = self.hardware / path
        node.parent.mkdir(parents=True, exist_ok=True)
        node.touch()

    def add_chip(self, vendor: str, device: str) -> None:
        chip = self.hardware / "sys/bus/pci/devices/0000:00:05.0"
        chip.mkdir(parents=True)
        (chip / "vendor").write_text(vendor + "\n")
        (chip / "device").write_text(device + "\n")

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": str(self.bin),
            "HOME": str(self.root),
            "CALLS": str(self.calls),
            "PIP_EXIT": "0",
        }
        return subprocess.run(
            [BASH, *command],
            cwd=self.root,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def device(self, **variables: str) -> str:
        code = "set -euo pipefail; . launch/env.sh; hardware=$1; detect_device"
        done = self.run("-c", code, "bash", str(self.hardware), **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def install(self, *, device: str = "cpu", extras: str = "", **variables: str) -> list[str]:
        """Runs ensure_env, and returns what it asked of Python: "venv" and "pip EXTRAS"."""
        self.calls.write_text("")
        code = 'set -euo pipefail; . launch/env.sh; ensure_env "$1" "$2"'
        done = self.run("-c", code, "bash", device, extras, **variables)
        assert done.returncode == 0, done.stderr
        return self.calls.read_text().splitlines()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def assert_one_line(done: subprocess.CompletedProcess[str], *, status: int, says: str) -> None:
    assert done.returncode == status, done
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert says in done.stderr


# ----------------------------------------------------------------------------- the scripts


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_parses(script: Path):
    done = subprocess.run([BASH, "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["launch/local.sh", "launch/test.sh", ".ci/run"])
def test_script_can_be_run(name: str):
    assert os.access(ROOT / name, os.X_OK)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    done = subprocess.run(["shellcheck", "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# --------------------------------------------------------------------------------- devices


def test_no_accelerator_is_cpu(project: Project):
    assert project.device() == "cpu"


@pytest.mark.parametrize(
    ("banner", "device"),
    [
        ("CUDA Version: 12.2", "cuda12"),
        ("CUDA Version: 13.0", "cuda13"),
        ("CUDA UMD Version: 13.1", "cuda13"),
        ("CUDA Version: 11.8", "cpu"),
        ("CUDA Version: N/A", "cpu"),
    ],
)
def test_cuda_is_what_the_driver_supports(project: Project, banner: str, device: str):
    project.add_gpu(cuda=banner)
    assert project.device() == device


def test_cuda12_for_a_gpu_that_cuda13_dropped(project: Project):
    project.add_gpu(cuda="CUDA Version: 13.0", capability="9.0\\n7.0\\n")
    assert project.device() == "cuda12"


@pytest.mark.parametrize(
    ("listing", "status"),
    [("No devices were found", 6), ("NVIDIA-SMI has failed: no NVIDIA driver", 9), ("", 0)],
)
def test_nvidia_smi_without_a_gpu_is_cpu(project: Project, listing: str, status: int):
    project.add_gpu(listing=listing, status=status)
    assert project.device() == "cpu"


@pytest.mark.parametrize("node", ["dev/accel0", "dev/vfio/0"])
def test_tpu_needs_a_node_and_a_hint(project: Project, node: str):
    assert project.device(TPU_NAME="local") == "cpu"
    project.add_node(node)
    assert project.device() == "cpu"
    assert project.device(TPU_ACCELERATOR_TYPE="v5litepod-8") == "tpu"
    assert project.device(TPU_NAME="local") == "tpu"


@pytest.mark.parametrize(
    ("vendor", "number", "device"),
    [
        ("0x1ae0", "0x005e", "tpu"),  # TPU v4
        ("0x1ae0", "0x0042", "cpu"),  # a network card of the same maker
        ("0x10de", "0x005e", "cpu"),
    ],
)
def test_tpu_by_its_pci_number(project: Project, vendor: str, number: str, device: str):
    project.add_node("dev/vfio/0")
    project.add_chip(vendor, number)
    assert project.device() == device


def test_device_can_be_set(project: Project):
    project.add_gpu()
    assert project.device(JAXPRETRAIN_DEVICE="tpu") == "tpu"
    done = project.run("launch/local.sh", "--install-only", JAXPRETRAIN_DEVICE="gpu")
    assert_one_line(done, status=2, says="'gpu'")


# ----------------------------------------------------------------------------- environment


def test_installs_once_and_again_when_something_changed(project: Project):
    assert project.install(extras="tfds,parquet") == ["venv", "pip .[parquet,tfds]"]
    assert project.install(extras="tfds,parquet") == []
    assert project.install(extras="parquet") == []
    assert project.install(extras="test") == ["pip .[parquet,test,tfds]"]
    with (project.root / "setup.cfg").open("a") as file:
        file.write("# changed\n")
    assert project.install() == ["pip .[parquet,test,tfds]"]
    assert project.install() == []


def test_stamp_holds_the_hash_of_both_files(project: Project):
    project.install()
    stamp = (project.root / ".venv/jaxpretrain.stamp").read_text()
    files = (project.root / name for name in ("setup.cfg", "pyproject.toml"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    assert f"files {digest}\n" in stamp


def test_kinds_of_accelerator_do_not_mix(project: Project):
    assert project.install() == ["venv", "pip ."]
    assert project.install(device="cuda12") == ["pip .[cuda12]"]
    assert project.install(device="cpu") == []
    assert project.install(device="cuda13") == ["venv", "pip .[cuda13]"]


def test_another_python_makes_it_anew(project: Project):
    project.install(extras="test")
    assert project.install(PYTHON="python3") == []
    project.add("other", python(identity="3.12 /opt"))
    assert project.install(extras="dev", PYTHON="other") == ["venv", "pip .[dev]"]
    # From here on the environment's own Python is kept, whatever else is on PATH.
    assert project.install(extras="dev") == []


def test_a_failed_installation_shows_its_log_and_is_taken_up_again(project: Project):
    done = project.run("launch/local.sh", "--install-only", PIP_EXIT="1")
    assert done.returncode == 1
    assert "pip was here\nerror: pip could not install jaxpretrain" in done.stderr
    assert project.install(extras="parquet,tfds") == ["pip .[parquet,tfds]"]
    assert project.install(extras="parquet,tfds") == []


def test_an_environment_of_the_users_own_is_left_alone(project: Project):
    precious = project.root / ".venv/precious"
    precious.parent.mkdir()
    precious.touch()
    done = project.run("launch/test.sh")
    assert_one_line(done, status=1, says="was not made by launch")
    assert precious.exists()


# Debian's python3 before python3-venv is installed, and an apt-get that has to be updated first.
APT_GET = f"""#!{BASH}
echo "apt-get $*" >>"$CALLS"
if [ "$1" = update ]; then
  : >"$HOME/lists"
else
  [ -e "$HOME/lists" ] || exit 1
  : >"$HOME/ensurepip"
fi
"""
LACKS_VENV = python(venv='[ -e "$HOME/ensurepip" ] || exit 1')


def test_what_debian_leaves_out_is_installed(project: Project):
    project.add("python3", LACKS_VENV)
    project.add("apt-get", APT_GET)
    project.add("id", f"#!{BASH}\necho 0\n")
    install = "apt-get install -y --no-install-recommends python3.11-venv"
    assert project.install() == [install, "apt-get update", install, "venv", "pip ."]


def test_what_debian_leaves_out_is_named_to_other_users(project: Project):
    project.add("python3", LACKS_VENV)
    project.add("apt-get", APT_GET)
    project.add("id", f"#!{BASH}\necho 1000\n")
    done = project.run("launch/test.sh")
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ") and error.endswith("sudo apt-get install python3.11-venv")


def test_no_python(project: Project):
    (project.bin / "python3").unlink()
    done = project.run("launch/test.sh")
    assert_one_line(done, status=1, says="no Python 3.11 or newer found")


def test_old_python(project: Project):
    project.add("python3", f"#!{BASH}\nexit 1\n")  # what the question "3.11 or newer?" gets
    done = project.run("launch/test.sh")
    assert_one_line(done, status=1, says="no Python 3.11 or newer found")
    done = project.run("launch/test.sh", PYTHON="python3")
    assert_one_line(done, status=1, says="PYTHON=python3")
    project.add("python3.12", python())
    assert project.install() == ["venv", "pip ."]


# ------------------------------------------------------------------------ the command lines


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "'nonsense'"),
        (["--instal-only"], "'--instal-only'"),
        (["--config"], "--config needs a value"),
        (["--workdir"], "--workdir needs a value"),
        (["--config.steps"], "write --config.steps=VALUE"),
        (["--config", "configs/none.py"], "'configs/none.py'"),
    ],
)
def test_bad_usage_is_one_line(project: Project, arguments: list[str], says: str):
    assert_one_line(project.run("launch/local.sh", *arguments), status=2, says=says)
    assert not (project.root / ".venv").exists()


@pytest.mark.parametrize("script", ["local", "test"])
def test_help(project: Project, script: str):
    done = project.run(f"launch/{script}.sh", "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: launch/{script}.sh")
    assert not (project.root / ".venv").exists()


def test_local_runs_the_three_commands(project: Project):
    project.install(extras="parquet,tfds")
    installed = project.root / ".venv/bin"
    project.add("jaxpretrain", f'#!{BASH}\nprintf "<%s>" "$@"; echo\n', installed)
    done = project.run("launch/local.sh")
    config = f"--config={project.root}/configs/quickstart.py"
    assert done.stdout.splitlines() == [
        f"<{command}><{config}>" for command in ("prepare", "train", "evaluate")
    ]
    (project.root / "c d.py").touch()
    typed = ["--config", "c d.py:base", "--workdir", "w x", "--config.a=b c", "--config.d", "e"]
    done = project.run("launch/local.sh", *typed)
    given = "<--config=c d.py:base><--config.a=b c><--config.d=e>"
    assert done.stdout.splitlines() == [
        f"<prepare>{given}",  # which has no workdir
        f"<train>{given}<--workdir=w x>",
        f"<evaluate>{given}<--workdir=w x>",
    ]


def test_local_stops_at_the_first_failure(project: Project):
    project.install(extras="parquet,tfds")
    installed = project.root / ".venv/bin"
    program = f'#!{BASH}\necho "$1 on $JAX_PLATFORMS"; [ "$1" = prepare ] || exit 2\n'
    project.add("jaxpretrain", program, installed)
    done = project.run("launch/local.sh")
    assert (done.returncode, done.stdout) == (2, "prepare on cpu\ntrain on cpu\n")


def test_tests_run_in_parallel_unless_told_otherwise(project: Project):
    project.install(extras="test")
    for cores, workers in ((1, 1), (2, 2), (5, 4), (64, 4)):
        project.add("nproc", f"#!{BASH}\necho {cores}\n")
        done = project.run("launch/test.sh", "tests/data")
        assert (
            done.stdout
            == f"cpu: -m pytest -n {workers} --dist loadfile --no-loadscope-reorder tests/data\n"
        )
    for arguments in (["-n", "0"], ["-n3"], ["--pdb"], ["-p", "no:xdist"]):
        done = project.run("launch/test.sh", *arguments)
        assert done.stdout == f"cpu: -m pytest {' '.join(arguments)}\n"


def test_a_dry_run_prints_what_would_be_done_and_does_nothing(project):
    typed = ["--dry-run", "--workdir=a b", "--config.seed=3"]
    done = project.run("launch/local.sh", *typed, JAXPRETRAIN_DEVICE="cuda12")
    assert done.returncode == 0, done.stderr
    made, installed, *commands = done.stdout.splitlines()
    assert made.endswith(".venv") and " -m venv " in made
    assert "pip install -e" in installed and "cuda12" in installed
    assert [line.split("bin/jaxpretrain ")[1].split()[0] for line in commands] == [
        "prepare", "train", "evaluate",
    ]  # fmt: skip
    assert "--workdir=a\\ b" in commands[1] and "--config.seed=3" in commands[0]
    assert not project.calls.exists() and not (project.root / ".venv").exists()
