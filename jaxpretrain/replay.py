"""The ``replay`` command: the batch of a step and its corruption, exactly as training had them."""

import io

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.assemble import Pieces, assemble, identity, read_batch
from jaxpretrain.config import complete
from jaxpretrain.errors import UserError
from jaxpretrain.metrics import read_metrics
from jaxpretrain.step import progress_at, run_key
from jaxpretrain.storage import AnyPath, access, write
from jaxpretrain.types import Batch
from jaxpretrain.workdir import check_identity, open_run


def replay(
    workdir: AnyPath, *, step: int, passed_over: int | None = None, shown: int = 3
) -> tuple[Batch, object]:
    """Rebuilds what a step of a run read, writes it to a file and prints some of it.

    The file is ``replay-STEP.npz`` in the workdir, with the arrays of the batch and of the
    example that the objective made of it.

    Args:
        workdir: folder of the run.
        step: number of the step, from 1.
        passed_over: batches of the stream that were left out before, by rolling back; None means as
            many as in the run as it is now.
        shown: rows to print.

    Returns:
        The batch, and the objective's example.

    Raises:
        UserError: the folder holds no run, or the run has no such step.
    """
    pieces = assemble(complete(open_run(workdir)))
    check_identity(workdir, identity(pieces))
    steps = pieces.config.train.steps
    if not 1 <= step <= steps:
        raise UserError(f"--step is {step}: this run has the steps 1 to {steps}")
    if passed_over is None:
        rows = read_metrics(workdir)
        back = [r["passed_over"] for r in rows if "passed_over" in r and r["step"] < step]
        passed_over = back[-1] if back else 0
    if passed_over < 0:
        raise UserError(f"--passed-over is {passed_over}: it must not be negative")
    position = step - 1 + passed_over
    batch = read_batch(pieces, position)
    progress = progress_at(jnp.int32(step - 1), steps)
    make = jax.jit(
        lambda batch: pieces.objective.example(
            batch, run_key(pieces.config.seed), train=True, progress=progress
        )[0]
    )
    example = jax.device_get(make(batch))
    arrays = {f"batch{path}": x for path, x in paths(batch)}
    arrays |= {f"example{path}": x for path, x in paths(example)}
    file = workdir / f"replay-{step}.npz"
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    with access(f"write {file}"):
        write(file, packed.getvalue())
    for line in describe(pieces, batch, example, step, position, shown):
        print(line)
    print(f"\nall arrays: {file}")
    return batch, example


def paths(tree: object) -> list[tuple[str, np.ndarray]]:
    """The arrays of a tree by their paths."""
    return [
        (jax.tree_util.keystr(path), np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def describe(
    pieces: Pieces, batch: Batch, example: object, step: int, position: int, shown: int
) -> list[str]:
    """What a person wants to see of a batch, as lines."""
    tokenizer = pieces.store.tokenizer
    lines = [f"step {step}, batch {position} of the stream, {len(batch.tokens)} rows"]
    lines += [f"  example{path}: {x.dtype} {list(x.shape)}" for path, x in paths(example)]
    for row in range(min(shown, len(batch.tokens))):
        text = batch.tokens[row][batch.segments[row] > 0]
        lines += [
            "",
            f"row {batch.row_ids[row]}, epoch {batch.epochs[row]}",
            f"  text    {tokenizer.decode(text.tolist())!r}",
        ]
        inputs, targets = getattr(example, "inputs", None), getattr(example, "targets", None)
        if inputs is not None and inputs.ndim == 2:
            seen = inputs[row][example.segments[row] > 0]
            lines.append(f"  inputs  {on_a_line(tokenizer.pieces(seen))}")
            wanted = targets[row][example.weights[row] > 0]
            lines.append(f"  targets {on_a_line(tokenizer.pieces(wanted))}")
    return lines


def on_a_line(pieces: list[str]) -> str:
    """Pieces side by side; the piece of a newline is written as in Python."""
    return " ".join(pieces).replace("\n", "\\n")
