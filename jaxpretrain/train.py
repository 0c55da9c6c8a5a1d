"""Training, from top to bottom: build, restore, loop, evaluate, save, sum up."""

import itertools
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxpretrain import __version__
from jaxpretrain.assemble import (
    Evaluator,
    Pieces,
    abstract_batch,
    assemble,
    identity,
    training_batches,
)
from jaxpretrain.balance import Watch, jit_measure
from jaxpretrain.checkpoint import Checkpoints, claim_workdir
from jaxpretrain.errors import UserError
from jaxpretrain.evaluation.heldout import HeldOut
from jaxpretrain.metrics import MetricsLog, Progress, finite, peak_flops
from jaxpretrain.report.curves import plot_loss
from jaxpretrain.state import TrainState, init_state
from jaxpretrain.step import jit_train_step
from jaxpretrain.types import Batch


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
    step_function = jit_train_step(
        objective,
        optimizer,
        pieces.abstract,
        pieces.placement,
        seed=config.seed,
        total_steps=steps,
        microbatches=config.train.microbatches,
    ).lower(pieces.abstract, abstract_batch(pieces))
    balance = Balance(pieces) if objective.measure_every else None
    evaluator = Evaluator(pieces, "validation")
    flops_per_step = objective.flops(length) * batch_size
    peak = peak_flops()

    # Restore, or begin.
    claim_workdir(workdir, config.to_dict(), pieces.store.tokenizer, identity(pieces))
    checkpoints = Checkpoints(workdir / "checkpoints", keep_latest=config.checkpoint.keep_latest)
    start = checkpoints.latest()
    if start is None:
        start, state = 0, init_state(objective, optimizer, config.seed, pieces.abstract)
    else:
        state = checkpoints.restore(start, pieces.abstract)
    stop = config.train.stop_at or steps
    if stop < start:
        raise UserError(f"train.stop_at is {stop}, and {workdir} is at step {start} already")
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(
        f"{workdir}: {objective.name}, {parameters:,} parameters, {jax.device_count()} "
        f"{jax.devices()[0].platform} device(s), steps {start} to {stop}; compiling",
        flush=True,
    )
    log = MetricsLog(workdir, start)
    progress = Progress(stop, start)
    clock = Clock(log.seconds)

    # Loop. Metrics are fetched after the next step has been sent off, so the device never waits.
    # The clock leaves out compilation, evaluation and saving.
    pending = None
    step, evaluated = start, None
    with clock.paused():
        step_function = step_function.compile()
        if balance:
            balance.compile()
        batches = started(training_batches(pieces, start, stop))
    with sigterm_noted() as interrupted:
        for step, batch in zip(range(start + 1, stop + 1), batches, strict=True):
            if balance and (step - 1) % objective.measure_every == 0:
                state = balance.measure(state, batch, step - 1, log, clock)
            state, metrics = step_function(state, batch)
            progress.advance()
            if pending is not None:
                write_step(*pending, log, progress, clock)
                pending = None
            last = step == stop or interrupted()
            save_now = last or is_due(step, config.checkpoint.every)
            # A checkpoint has its held-out loss, so that the best one is known; but a run that is
            # told to stop has no time for that.
            evaluate_now = is_due(step, config.evaluate.every) or (save_now and not interrupted())
            if save_now or evaluate_now or is_due(step, config.train.log_every) or step == 1:
                pending = (step, metrics, batch_size * length, flops_per_step, peak)
            evaluated = None
            if evaluate_now or save_now:
                write_step(*pending, log, progress, clock)
                pending = None
                with clock.paused():
                    if evaluate_now:
                        evaluated = evaluator(state.params, config.evaluate.batches)
                        tokens = step * batch_size * length
                        write_evaluation(step, evaluated, tokens, log, progress, clock)
                    if save_now:
                        checkpoints.save(state, evaluated and evaluated.loss)
            if last:
                break
        seconds = clock.seconds
        checkpoints.close()
    progress.close()
    log.close()
    if step < stop:
        print(f"stopped by SIGTERM after step {step}, saved; the same command goes on from there")
        raise SystemExit(143)

    # Sum up.
    if evaluated is None or config.evaluate.batches:
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
        "eval": {"split": "validation", "step": step} | finite(evaluated._asdict()),
    }
    (workdir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    comparable = evaluated.loss == evaluated.token_loss
    plot_loss(workdir, unigram_loss=evaluated.unigram_loss if comparable else None)
    return summary


class Clock:
    """Seconds spent training, over all parts of a run.

    Args:
        seconds: of the parts before.
    """

    def __init__(self, seconds: float):
        self._start = time.perf_counter() - seconds
        self._stopped: float | None = None
        self.last, self.last_step = seconds, None

    @property
    def seconds(self) -> float:
        """Up to now, or to the beginning of the pause."""
        return (self._stopped or time.perf_counter()) - self._start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which the clock stands still."""
        self._stopped = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - self._stopped
            self._stopped = None


class Balance:
    """Measures now and then how the tasks of a mixture share the gradient, and says what it sees.

    Args:
        pieces: of the run; the objective is a mixture.
    """

    def __init__(self, pieces: Pieces):
        self._watch = Watch(pieces.objective)
        self._every = pieces.objective.measure_every
        self._function = jit_measure(
            pieces.objective,
            pieces.abstract,
            pieces.placement,
            seed=pieces.config.seed,
            total_steps=pieces.config.train.steps,
            microbatches=pieces.config.train.microbatches,
        ).lower(pieces.abstract, abstract_batch(pieces))
        self._steps_seconds: tuple[int, float] | None = None
        self._cost_said = False

    def compile(self) -> None:
        """Compiles; the clock of the run stands still meanwhile."""
        self._function = self._function.compile()

    def measure(self, state: TrainState, batch: Batch, step: int, log, clock) -> TrainState:
        """Measures on the batch of the next step, logs, warns, and prints once what it costs."""
        jax.block_until_ready(state)
        before = clock.seconds
        state, metrics = self._function(state, batch)
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        after = clock.seconds
        log.write(step + 1, values | {"seconds": after})
        warning = self._watch.see(values)
        if warning:
            print(warning, flush=True)
        if self._steps_seconds and not self._cost_said:
            done, then = self._steps_seconds
            each = (before - then) / (step - done)
            print(
                f"gradient shares: measured every {self._every} steps, "
                f"{(after - before) / each:.1f} steps' time each, "
                f"{(after - before) / (each * self._every + after - before):.1%} of the training",
                flush=True,
            )
            self._cost_said = True
        self._steps_seconds = step, after
        return state


def write_step(step, metrics, tokens_per_step, flops_per_step, peak, log, progress, clock) -> None:
    """Fetches the metrics of a step and writes them, with the speed since the last time."""
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    seconds = clock.seconds
    values |= {"tokens": step * tokens_per_step, "seconds": seconds}
    if clock.last_step is None:
        clock.last_step = step - 1 if seconds > clock.last else step
    if step > clock.last_step:
        each = (seconds - clock.last) / (step - clock.last_step)
        values |= {"step_seconds": each, "tokens_per_second": tokens_per_step / each}
        values["mfu"] = flops_per_step / each / peak if peak else None
    clock.last, clock.last_step = seconds, step
    log.write(step, values)
    if not math.isfinite(values["loss"]):
        raise UserError(
            f"the loss is {values['loss']} at step {step}, with a gradient norm of "
            f"{values['grad_norm']}: lower optimizer.learning_rate or lengthen the warmup"
        )
    shown = {
        "loss": values["loss"],
        "lr": values["learning_rate"],
        "tokens/s": values.get("tokens_per_second"),
        "MFU": values.get("mfu"),
    }
    progress.show(step, shown)


def write_evaluation(step, evaluated: HeldOut, tokens, log, progress, clock) -> None:
    """Writes the held-out numbers of a step."""
    held = {f"eval_{key}": value for key, value in evaluated.numbers().items()}
    log.write(step, {"tokens": tokens, "seconds": clock.seconds} | held)
    progress.show(step, {"held-out loss": evaluated.loss}, always=True)


@contextmanager
def sigterm_noted() -> Iterator[Callable[[], bool]]:
    """Within, a SIGTERM only sets a mark; gives the function that reads it."""
    received = []
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    except ValueError:  # not the main thread: whoever runs us handles signals
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


def started(batches: Iterator) -> Iterator:
    """The same batches, the first of which has been read: libraries are loaded, files are open."""
    first = list(itertools.islice(batches, 1))
    return itertools.chain(first, batches)


def is_due(step: int, every: int) -> bool:
    """Whether something done every so many steps (0: never) is done after this one."""
    return every > 0 and step % every == 0
