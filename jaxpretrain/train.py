"""Training, from top to bottom: build, restore, loop, evaluate, save, sum up."""

import itertools
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxpretrain import __version__
from jaxpretrain.assemble import (
    Pieces,
    assemble,
    held_out_batches,
    training_batches,
    training_counts,
)
from jaxpretrain.checkpoint import Checkpoints, check_same_run
from jaxpretrain.config import flatten, to_json
from jaxpretrain.evaluation.heldout import HeldOut, held_out
from jaxpretrain.metrics import MetricsLog, Progress, peak_flops
from jaxpretrain.report.curves import plot_loss
from jaxpretrain.state import init_state
from jaxpretrain.step import compile_eval_step, compile_train_step


def train(config: ConfigDict, workdir: Path, *, verify: bool = False) -> dict:
    """Trains a config in a workdir, from the beginning or from the latest checkpoint there.

    The workdir gets ``config.json``, ``tokenizer.model``, ``checkpoints/``, ``metrics.jsonl``,
    ``tensorboard/``, and at the end ``summary.json`` and ``loss.png``.

    Args:
        config: complete, see `config.load`.
        workdir: folder of the run.
        verify: check the token store's checksums first.

    Returns:
        What ``summary.json`` holds.

    Raises:
        UserError: the workdir holds another run, or the config does not fit the machine.
    """
    # Build.
    pieces = assemble(config, verify=verify)
    objective, optimizer = pieces.objective, pieces.optimizer
    steps, batch_size, length = config.train.steps, config.data.batch_size, config.data.length
    step_function = compile_train_step(
        objective,
        optimizer,
        pieces.abstract,
        seed=config.seed,
        total_steps=steps,
        microbatches=config.train.microbatches,
    )
    evaluator = Evaluator(pieces, "validation")
    flops_per_step = objective.flops(length) * batch_size
    peak = peak_flops()

    # Restore, or begin.
    claim_workdir(pieces, workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", keep_latest=config.checkpoint.keep_latest)
    start = checkpoints.latest()
    if start is None:
        start, state = 0, init_state(objective, optimizer, config.seed, pieces.abstract)
    else:
        state = checkpoints.restore(start, pieces.abstract)
    stop = config.train.stop_at or steps
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(
        f"{workdir}: {objective.name}, {parameters:,} parameters, {jax.device_count()} "
        f"{jax.devices()[0].platform} device(s), steps {start} to {stop}",
        flush=True,
    )
    log = MetricsLog(workdir, start)
    progress = Progress(stop, start)
    interrupted = catch_sigterm()

    # Loop. Metrics are fetched after the next step has been sent off, so the device never waits.
    # The clock leaves out the first step, which compiles, and evaluation and saving.
    clock = Clock(log.seconds)
    pending = None
    step, evaluated = start, None
    for step, batch in zip(
        range(start + 1, stop + 1), training_batches(pieces, start, stop), strict=True
    ):
        state, metrics = step_function(state, batch)
        if step == start + 1:
            jax.block_until_ready(state)
            clock = Clock(log.seconds)
        progress.advance()
        if pending is not None:
            write_step(*pending, log, progress, clock)
            pending = None
        last = step == stop or interrupted()
        if step % config.train.log_every == 0 or last or step == start + 1:
            pending = (step, metrics, batch_size * length, flops_per_step, peak)
        evaluated = None
        if step == stop or is_due(step, config.evaluate.every):
            if pending is not None:
                write_step(*pending, log, progress, clock)
                pending = None
            jax.block_until_ready(state)
            values = {"tokens": step * batch_size * length, "seconds": clock.seconds}
            with clock.paused():
                evaluated = evaluator(state.params)
                held = {
                    f"eval_{key}": value
                    for key, value in evaluated._asdict().items()
                    if value is not None
                }
                log.write(step, values | held)
                progress.show(step, {"held-out loss": evaluated.loss}, always=True)
        if last or is_due(step, config.checkpoint.every):
            jax.block_until_ready(state)
            with clock.paused():
                checkpoints.save(state, None if evaluated is None else evaluated.loss)
        if last:
            break
    if pending is not None:
        write_step(*pending, log, progress, clock)
    seconds = clock.seconds if step > start else log.seconds
    checkpoints.close()
    progress.close()
    log.close()
    if interrupted() and step < stop:
        print(f"stopped by SIGTERM after step {step}, saved; the same command goes on from there")
        raise SystemExit(143)

    # Sum up.
    if evaluated is None:  # the run had already been at its end
        evaluated = evaluator(state.params)
    summary = {
        "config": config.to_dict(),
        "version": __version__,
        "jax": jax.__version__,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "parameters": parameters,
        "steps": step,
        "tokens": step * batch_size * length,
        "train_seconds": round(seconds, 3),
        "tokens_per_second": round(step * batch_size * length / max(seconds, 1e-9), 1),
        "flops": flops_per_step * step,
        "eval": {"split": "validation", "step": step, **evaluated._asdict()},
    }
    (workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    plot_loss(workdir, unigram_loss=evaluated.unigram_loss)
    return summary


class Evaluator:
    """The held-out loss of the config's objective on one split of its store."""

    def __init__(self, pieces: Pieces, split: str):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, pieces.abstract.params)
        self._step = compile_eval_step(pieces.objective, shardings, seed=pieces.config.seed)
        self._counts = training_counts(pieces)
        self._pieces, self._split = pieces, split

    def __call__(self, params: dict) -> HeldOut:
        """Evaluates parameters; the corruption is the same at every call."""
        batches = held_out_batches(self._pieces, self._split)
        if self._pieces.config.evaluate.batches:
            batches = itertools.islice(batches, self._pieces.config.evaluate.batches)
        return held_out(self._step, params, batches, self._pieces.objective, self._counts)


class Clock:
    """Seconds spent training, without evaluations and saves, over all parts of a run."""

    def __init__(self, seconds: float):
        self._before, self._start = seconds, time.perf_counter()
        self.last = self.seconds
        self.last_step: int | None = None

    @property
    def seconds(self) -> float:
        """Up to now."""
        return self._before + time.perf_counter() - self._start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which the clock stands still."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - begun


def write_step(step, metrics, tokens_per_step, flops_per_step, peak, log, progress, clock) -> None:
    """Fetches the metrics of a step and writes them, with the speed since the last time."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    seconds = clock.seconds
    values |= {"tokens": step * tokens_per_step, "seconds": seconds}
    if clock.last_step is not None and step > clock.last_step:
        each = (seconds - clock.last) / (step - clock.last_step)
        values |= {"step_seconds": each, "tokens_per_second": tokens_per_step / each}
        values["mfu"] = flops_per_step / each / peak if peak else None
    clock.last, clock.last_step = seconds, step
    log.write(step, values)
    shown = {
        "loss": values["loss"],
        "lr": values["learning_rate"],
        "tokens/s": values.get("tokens_per_second"),
        "MFU": values.get("mfu"),
    }
    progress.show(step, shown)


def claim_workdir(pieces: Pieces, workdir: Path) -> None:
    """Writes what the run is into an empty workdir, or checks that a used one is the same run."""
    identity = {
        "tokenizer": pieces.store.tokenizer.sha256,
        "token store": pieces.store.manifest["sha256"],
    }
    if (workdir / "run.json").exists():
        check_same_run(workdir, flatten(pieces.config.to_dict()), identity)
        return
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(to_json(pieces.config))
    pieces.store.tokenizer.save(workdir / "tokenizer.model")
    (workdir / "run.json").write_text(json.dumps(identity, indent=2) + "\n")


def catch_sigterm():
    """Lets a SIGTERM end the loop after the step in progress; returns whether one has come."""
    received = []
    try:
        signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    except ValueError:  # not the main thread: whoever runs us handles signals
        pass
    return lambda: bool(received)


def is_due(step: int, every: int) -> bool:
    """Whether something done every so many steps (0: never) is done after this one."""
    return every > 0 and step % every == 0
