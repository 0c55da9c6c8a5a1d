"""Kills a run with SIGKILL at random moments, goes on, and compares what comes out.

    PYTHONPATH=tests python -m support.killing --kills=20

trains the tiny config of `support.tiny_run` in one go, and again in parts, each of which is killed
at a moment drawn at random (while it starts, trains, evaluates or saves: it saves all the time).
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEPS = 600


def start(config_file: Path, workdir: Path, *options: str) -> subprocess.Popen:
    """A training process in the background; its output is in ``workdir.log``."""
    command = [
        sys.executable, "-m", "jaxpretrain.main", "train", f"--config={config_file}",
        f"--workdir={workdir}", f"--config.train.steps={STEPS}", "--config.checkpoint.every=5",
        "--config.evaluate.every=50", "--config.train.log_every=1", *options,
    ]  # fmt: skip
    flags = re.sub(r"device_count=\d+", "device_count=1", os.environ.get("XLA_FLAGS", ""))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    with open(f"{workdir}.log", "a") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def moment(workdir: Path, rng: random.Random, kinds: Sequence[str]) -> str:
    """Waits for a random moment: of the start, of the training, or inside of a save; says which."""
    kind = rng.choice(kinds)
    if kind == "start":
        time.sleep(rng.uniform(0, 8))
        return kind
    before = newest(workdir)
    deadline = time.monotonic() + 60
    while newest(workdir) == before and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.3 if kind == "save" else 1.5))
    if kind == "save":
        while not list((workdir / "checkpoints").glob("*tmp*")) and time.monotonic() < deadline:
            pass
        time.sleep(rng.uniform(0, 0.02))
    return kind


def newest(workdir: Path) -> int:
    """Step of the newest whole checkpoint, 0 for none."""
    names = [path.name for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]
    return max(map(int, names), default=0)


def killed(
    config_file: Path,
    workdir: Path,
    kills: int,
    seed: int,
    *options: str,
    kinds: Sequence[str] = ("start", "training", "save", "save"),
) -> list[str]:
    """Runs to the end, with so many kills on the way; returns what there was when each came."""
    rng, found = random.Random(seed), []
    for _ in range(kills):
        process = start(config_file, workdir, *options)
        kind = moment(workdir, rng, kinds)
        assert process.poll() is None, Path(f"{workdir}.log").read_text()
        process.send_signal(signal.SIGKILL)
        process.wait()
        half = any((workdir / "checkpoints").glob("*tmp*"))
        found.append(
            f"during {kind}, newest checkpoint {newest(workdir)}"
            + (", and one half-written" if half else "")
        )
    assert start(config_file, workdir, *options).wait() == 0, Path(f"{workdir}.log").read_text()
    return found


def final_sums(workdir: Path) -> dict[str, int]:
    """The fingerprint of the last checkpoint, as it was restored and checked."""
    import jax

    from jaxpretrain.assemble import assemble
    from jaxpretrain.checkpoint import Checkpoints
    from jaxpretrain.config import complete
    from jaxpretrain.state import fingerprint
    from jaxpretrain.workdir import read_json

    pieces = assemble(complete(read_json(workdir / "config.json")))
    checkpoints = Checkpoints(workdir / "checkpoints", pieces.placement, read_only=True)
    state = checkpoints.restore(checkpoints.latest(), pieces.abstract)
    checkpoints.close()
    return {path: int(value) for path, value in jax.jit(fingerprint)(state).items()}


def main() -> None:
    """Runs the comparison and says what came out."""
    from jaxpretrain.assemble import prepare_store
    from support import tiny_run

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        file = tiny_run.write(folder)
        prepare_store(tiny_run.config(file))
        assert start(file, folder / "whole").wait() == 0, (folder / "whole.log").read_text()
        began = time.monotonic()
        found = killed(file, folder / "parts", options.kills, options.seed)
        for number, line in enumerate(found, start=1):
            print(f"kill {number}: {line}")
        whole, parts = final_sums(folder / "whole"), final_sums(folder / "parts")
        print((folder / "parts.log").read_text()[-300:])
        assert whole == parts, "the parameters differ"
        print(
            f"{len(whole)} arrays of step {STEPS} are bitwise equal after {options.kills} kills "
            f"({time.monotonic() - began:.0f} s)"
        )


if __name__ == "__main__":
    main()
