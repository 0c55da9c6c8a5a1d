"""What saving costs, as a share of the training: a save every 100 steps against none.

    python -m benchmarks.saving --config=configs/clm.py

Stretches of training steps with and without a save at their beginning take turns, on the same
state and batch. What counts is the time until the last step of the stretch is done, so that all of
a save is in it: the fingerprint, the copy of the arrays, and the writing behind the steps' back, as
far as it slows them down.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax

from benchmarks.made_up import text, vocabulary
from jaxpretrain.assemble import build, placed_seed, traced_step
from jaxpretrain.checkpoint import Checkpoints
from jaxpretrain.config import load
from jaxpretrain.main import quiet_libraries, take_overrides
from jaxpretrain.state import init_state


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/clm.py")
    parser.add_argument("--every", type=int, default=100, help="steps in a stretch (default: 100)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of stretches (default: 3)")
    parser.add_argument("--folder", help="where to save (default: a temporary folder)")
    arguments, overrides = take_overrides(sys.argv[1:])
    options = parser.parse_args(arguments)
    quiet_libraries()
    config = load(options.config, overrides)
    vocab = vocabulary(config.tokenizer.vocab_size)
    pieces = build(config, vocab)
    batch = jax.device_put(
        text(config.data.batch_size, config.data.length, vocab),
        pieces.placement.batch,
    )
    step, seed = traced_step(pieces).lower().compile(), placed_seed(pieces)
    state = init_state(pieces.objective, pieces.optimizer, 0, pieces.abstract)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        checkpoints = Checkpoints(Path(folder) / "checkpoints", pieces.placement, keep_latest=2)

        def stretch(state, save):
            jax.block_until_ready(state)
            began = time.perf_counter()
            held = 0.0
            if save:
                checkpoints.save(state)
                held = time.perf_counter() - began
            for _ in range(options.every):
                state, _ = step(state, batch, seed)
            jax.block_until_ready(state)
            return state, time.perf_counter() - began, held

        state, _, _ = stretch(state, save=True)  # warm: the fingerprint is compiled
        checkpoints.wait()
        plain, saving, held = [], [], []
        for _ in range(options.rounds):
            state, seconds, _ = stretch(state, save=False)
            plain.append(seconds)
            state, seconds, blocked = stretch(state, save=True)
            saving.append(seconds)
            held.append(blocked)
            checkpoints.wait()
        checkpoints.close()
    cost = statistics.median(b / a - 1 for a, b in zip(plain, saving, strict=True))
    print(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, state of {size / 1e6:.1f} MB, "
        f"{options.every} steps: {statistics.median(plain):.2f} s without a save, "
        f"{statistics.median(saving):.2f} s with one ({statistics.median(held):.3f} s of it until "
        f"the steps go on): {cost:.1%}"
    )


if __name__ == "__main__":
    main()
