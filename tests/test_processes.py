"""Real processes on this machine: they train as one, stop as one, and go on as fewer or more."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpretrain.assemble import assemble
from jaxpretrain.checkpoint import Checkpoints
from jaxpretrain.errors import UserError
from jaxpretrain.metrics import read_metrics
from jaxpretrain.preemption import PREEMPTED
from jaxpretrain.processes import join, launched
from jaxpretrain.train import train
from support import tiny_run

ROOT = Path(__file__).parents[1]
OPTIONS = {"objective__name": "mlm", "train__log_every": "1"}


def start(config_file, workdir, *, processes, devices, **options):
    """Processes that train together, each with so many devices; their outputs go to files."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = re.sub(r"device_count=\d+", f"device_count={devices}", os.environ["XLA_FLAGS"])
    started = []
    for index in range(processes):
        overrides = [f"--config.{k.replace('__', '.')}={v}" for k, v in options.items()]
        with open(f"{workdir}-{index}.log", "w") as log:
            started.append(
                subprocess.Popen(
                    [
                        sys.executable, "-m", "jaxpretrain.main", "train",
                        f"--config={config_file}", f"--workdir={workdir}",
                        f"--coordinator=localhost:{port}", f"--processes={processes}",
                        f"--process={index}", "--heartbeat=10", *overrides,
                    ],
                    env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
    return started


def ended(processes, workdir, seconds=150):
    """Exit statuses and outputs, once all have ended."""
    deadline = time.monotonic() + seconds
    try:
        statuses = [p.wait(max(deadline - time.monotonic(), 0.1)) for p in processes]
    finally:
        for process in processes:
            process.kill()
    return statuses, [Path(f"{workdir}-{i}.log").read_text() for i in range(len(processes))]


def until_step(processes, workdir, step):
    deadline = time.monotonic() + 120
    while not any(row["step"] >= step for row in read_metrics(workdir)):
        assert all(p.poll() is None for p in processes) and time.monotonic() < deadline, [
            Path(f"{workdir}-{i}.log").read_text() for i in range(len(processes))
        ]
        time.sleep(0.1)


def state_of(workdir, step, config):
    pieces = assemble(config)
    checkpoints = Checkpoints(workdir / "checkpoints", pieces.placement, read_only=True)
    state = checkpoints.restore(step, pieces.abstract)
    checkpoints.close()
    return jax.device_get(state)


def losses(workdir):
    return {row["step"]: row["loss"] for row in read_metrics(workdir) if "loss" in row}


@pytest.fixture(scope="module")
def alone(tiny_config_file, tmp_path_factory):
    """The run of one process with eight devices."""
    workdir = tmp_path_factory.mktemp("runs") / "alone"
    train(tiny_run.config(tiny_config_file, **OPTIONS), workdir)
    return workdir


@pytest.fixture(scope="module")
def four(tiny_config_file, tmp_path_factory):
    """Half of the run by four processes with two devices each.

    Along "data" and "fsdp" the mesh crosses them, along "tensor" it is within each.
    """
    workdir = tmp_path_factory.mktemp("runs") / "four"
    processes = start(
        tiny_config_file, workdir, processes=4, devices=2,
        mesh__data=2, mesh__fsdp=2, mesh__tensor=2, train__stop_at=4, **OPTIONS,
    )  # fmt: skip
    return workdir, *ended(processes, workdir)


def test_several_processes_compute_what_one_does(four, alone, tiny_config_file):
    workdir, statuses, outputs = four
    assert statuses == [0] * 4, outputs
    assert "8 cpu device(s)" in outputs[0] and "done: 4 steps" in outputs[0]
    for quiet in outputs[1:]:  # what Gloo says of its own accord is not ours
        assert not [line for line in quiet.splitlines() if line and "peer ranks" not in line], quiet
    there, here = losses(workdir), losses(alone)
    assert sorted(there) == [1, 2, 3, 4]  # written once
    np.testing.assert_allclose(list(there.values()), [here[s] for s in there], rtol=2e-6)
    config = tiny_run.config(tiny_config_file, **OPTIONS)
    a, b = (state_of(path, 4, config) for path in (workdir, alone))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=5e-5), a, b)
    assert json.loads((workdir / "summary.json").read_text())["device"].startswith("8 x")


def test_one_process_goes_on_from_four_on_another_mesh(four, alone, tiny_config_file, tmp_path):
    mesh = {"mesh__data": 1, "mesh__fsdp": 2, "mesh__tensor": 2, "mesh__context": 2}
    workdir, _, _ = four
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", workdir, copy], check=True)
    config = tiny_run.config(tiny_config_file, **OPTIONS, **mesh)
    # Bit by bit what was saved, whatever the mesh: the fingerprints are those of four processes.
    restored, other = (
        state_of(copy, 4, config),
        state_of(copy, 4, tiny_run.config(tiny_config_file)),
    )
    jax.tree.map(np.testing.assert_array_equal, restored, other)
    train(config, copy)
    there, here = losses(copy), losses(alone)
    assert sorted(there) == list(range(1, 9))
    np.testing.assert_allclose(list(there.values()), [here[s] for s in there], rtol=5e-6)


def test_two_go_on_from_four_and_stop_together_when_one_is_told(
    four, alone, tiny_config_file, tmp_path
):
    """The newest checkpoint is damaged where only the second of them looks."""
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", four[0], copy], check=True)
    config = json.loads((copy / "config.json").read_text())
    config["train"]["steps"] = 100_000  # long enough to be told in the middle
    (copy / "config.json").write_text(json.dumps(config))
    subprocess.run(["cp", "-r", copy / "checkpoints/4", copy / "checkpoints/6"], check=True)
    half = copy / "checkpoints/6/default/ocdbt.process_1/d"  # of the arrays that are divided
    for file in half.iterdir():
        file.write_bytes(bytes(file.stat().st_size))
    processes = start(
        tiny_config_file, copy, processes=2, devices=1, mesh__data=1, mesh__fsdp=2,
        train__steps=100_000, checkpoint__every=0, evaluate__every=0, **OPTIONS,
    )  # fmt: skip
    until_step(processes, copy, 8)
    processes[1].send_signal(signal.SIGTERM)
    statuses, outputs = ended(processes, copy, seconds=60)
    assert statuses == [PREEMPTED] * 2, outputs
    assert not any("Traceback" in output for output in outputs), outputs
    assert "another process cannot read it" in outputs[0]
    assert "put aside, and going on from checkpoint 4" in outputs[0]
    # The same batch read with the same parameters, before the longer schedule tells.
    np.testing.assert_allclose(losses(copy)[5], losses(alone)[5], rtol=5e-6)
    [step] = re.findall(r"preempted: stopped by SIGTERM after step (\d+), saved", outputs[0])
    config = tiny_run.config(tiny_config_file, train__steps=100_000, **OPTIONS)
    assert state_of(copy, int(step), config).step == int(step) >= 8


TOGETHER = """
import sys
from jaxpretrain.processes import join, wait_for_all
join(coordinator=sys.argv[1], processes=2, process=int(sys.argv[2]), heartbeat_seconds=5)
while True:
    wait_for_all("step")
    print("step", flush=True)
"""


def test_the_death_of_one_process_ends_the_others():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    first, second = (
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, address, str(index)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    )
    try:
        while first.stdout.readline() != "step\n":
            assert first.poll() is None, first.stderr.read()
        second.kill()
        began = time.monotonic()
        _, errors = first.communicate(timeout=60)
    finally:
        first.kill()
        second.kill()
    assert time.monotonic() - began < 30  # a heartbeat's timeout of 5 s, and the ending
    assert first.returncode not in (0, PREEMPTED)
    assert "another task died" in errors, errors[-2000:]


def test_what_launchers_say(monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "JAX_NUM_PROCESSES"):
        monkeypatch.delenv(name, raising=False)
    assert launched() == 1
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    assert launched() == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinator": "here:1"}, "go together"),
        ({"processes": 2, "process": 0}, "go together"),
        (
            {"coordinator": "here:1", "processes": 2, "process": 2},
            "--process is 2 of --processes 2",
        ),
    ],
)
def test_flags_that_do_not_go_together(options, message):
    with pytest.raises(UserError, match=message):
        join(**options)
