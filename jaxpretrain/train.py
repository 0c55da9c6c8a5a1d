"""Training, from top to bottom: build, restore, loop, evaluate, save, sum up."""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from jaxpretrain import __version__
from jaxpretrain.assemble import (
    Evaluator,
    Pieces,
    abstract_batch,
    abstract_seed,
    assemble,
    identity,
    model_of,
    placed_seed,
    read_batch,
    traced_step,
    training_batches,
)
from jaxpretrain.balance import Watch, jit_measure
from jaxpretrain.checkpoint import Checkpoints
from jaxpretrain.config import downstream_tasks
from jaxpretrain.errors import UserError
from jaxpretrain.evaluation import downstream
from jaxpretrain.evaluation.heldout import HeldOut
from jaxpretrain.guard import Guard
from jaxpretrain.metrics import Clock, Progress, finite, open_log, peak_flops
from jaxpretrain.preemption import PREEMPTED, preemption
from jaxpretrain.processes import is_first, say, wait_for_all
from jaxpretrain.report.curves import plot_loss
from jaxpretrain.settings import DownstreamSettings
from jaxpretrain.state import TrainState, init_state
from jaxpretrain.step import Metrics
from jaxpretrain.storage import AnyPath, access, write
from jaxpretrain.trackers import check_installed, open_trackers
from jaxpretrain.types import Batch
from jaxpretrain.workdir import claim_workdir, sole_use


def train(config: ConfigDict, workdir: AnyPath, *, verify: bool = False) -> dict:
    """Trains a config in a workdir, from the beginning or from the latest good checkpoint there.

    The workdir gets ``config.json``, ``tokenizer.model``, ``checkpoints/``, ``metrics.jsonl``,
    ``tensorboard/``, and at the end ``summary.json`` and ``loss.png``. Where there are several
    processes, all of them call this, and the first one writes.

    Args:
        config: complete, see `config.load`.
        workdir: folder of the run.
        verify: check the token store's checksums first.

    Returns:
        What ``summary.json`` holds.

    Raises:
        UserError: the workdir holds another run or cannot be written, the config does not fit the
            machine, or a step went bad and `guard` says to stop.
        SystemExit: with status `preemption.PREEMPTED`, after a SIGTERM.
    """
    with ExitStack() as held:
        return run(config, workdir, verify, held)


def run(config: ConfigDict, workdir: AnyPath, verify: bool, held: ExitStack) -> dict:
    """The training itself; see `train`. What it holds, the stack lets go of at the end."""
    # Build.
    told = held.enter_context(preemption(config.checkpoint.grace_seconds))
    if is_first():
        check_installed(config.track.to)
    pieces = assemble(config, verify=verify)
    objective, optimizer = pieces.objective, pieces.optimizer
    steps, batch_size, length = config.train.steps, config.data.batch_size, config.data.length
    step_function = traced_step(pieces).lower()
    balance = Balance(pieces) if objective.measure_every else None
    evaluator = Evaluator(pieces, "validation")
    watched = Watched(pieces) if config.downstream.every else None
    guard = Guard(**config.guard)
    speed = Speed(batch_size * length, objective.flops(length) * batch_size, peak_flops())

    # Restore, or begin.
    still_ours = None
    if is_first():
        still_ours = held.enter_context(sole_use(workdir))
        claim_workdir(workdir, config.to_dict(), pieces.store.tokenizer, identity(pieces))
    wait_for_all("workdir")
    checkpoints = Checkpoints(
        workdir / "checkpoints", pieces.placement, keep_latest=config.checkpoint.keep_latest
    )
    held.callback(checkpoints.close)

    def latest_or_first() -> TrainState:
        state = checkpoints.restore_latest(pieces.abstract)
        return state or init_state(objective, optimizer, config.seed, pieces.abstract)

    state, seed = latest_or_first(), placed_seed(pieces)
    step = start = int(state.step)
    passed_over = int(state.passed_over)
    stop = config.train.stop_at or steps
    if stop < start:
        raise UserError(f"train.stop_at is {stop}, and {workdir} is at step {start} already")
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    say(
        f"{workdir}: {objective.name}, {parameters:,} parameters, {jax.device_count()} "
        f"{jax.devices()[0].platform} device(s), "
        + (f"steps {start} to {stop}; compiling" if start < stop else f"at step {stop} already")
    )
    trackers = partial(open_trackers, workdir=workdir, config=config.to_dict(), **config.track)
    log = open_log(workdir, start, trackers, still_ours)

    def close_log() -> None:  # after an error, which is what there is to say
        with suppress(UserError):
            log.close()

    held.callback(close_log)
    progress = Progress(stop, start, quiet=not is_first())
    clock = Clock(log.seconds)

    # Loop. A step's metrics are looked at after the next one has been sent off, so that the device
    # never waits. The clock leaves out compilation, evaluation and saving.
    late, evaluated = None, None
    with clock.paused():
        if step < stop:
            step_function = step_function.compile()
            if balance:
                balance.compile()
        batches = stream(pieces, state, stop)
    if told.is_urgent:
        raise preempted(step, saved=False)
    if step == stop and not checkpoints.has_loss(step):  # stopped at its end, with no time for it
        with clock.paused():
            limit = config.evaluate.batches
            evaluated = evaluator(state.params, limit, give_up=lambda: told.is_urgent)
            if evaluated:
                write_evaluation(step, evaluated, speed, log, progress, clock)
                if still_ours:
                    still_ours()
                checkpoints.save_again(state, evaluated.loss)
    while step < stop:
        step, batch = step + 1, next(batches)
        if balance and (step - 1) % objective.measure_every == 0:
            state = balance.measure(state, batch, step - 1, log, clock)
        state, metrics = step_function(state, batch, seed)
        progress.advance()
        stopping = told.at(step)
        last = stopping or step == stop
        save_now = last or is_due(step, config.checkpoint.every)
        # A checkpoint has its held-out loss, so that the best one is known; but a run that is told
        # to stop has no time for that.
        evaluate_now = not stopping and (save_now or is_due(step, config.evaluate.every))
        logged = save_now or evaluate_now or is_due(step, config.train.log_every) or step == 1
        before, late = late, Done(step, metrics, logged, passed_over)
        seen = [before] if before else []
        if save_now or evaluate_now:
            seen, late = [*seen, late], None
        judge = partial(look, guard, pieces, workdir, speed, log, progress, clock)
        bad = next((done for done in seen if judge(done)), None)
        if bad:
            with clock.paused():
                late = None
                batches.close()
                checkpoints.wait()
                state = latest_or_first()
                step = int(state.step)
                passed_over += bad.step - step
                state = state._replace(passed_over=replaced(state.passed_over, passed_over))
                batches = stream(pieces, state, stop)
                log.rewind(step)
                log.write(step, {"rolled_back_from": bad.step, "passed_over": passed_over})
                progress.rewind(step)
            continue
        evaluated = None
        with clock.paused():
            if evaluate_now:
                limit = config.evaluate.batches
                evaluated = evaluator(state.params, limit, give_up=lambda: told.is_urgent)
                if evaluated:
                    write_evaluation(step, evaluated, speed, log, progress, clock)
            if save_now:
                if still_ours:
                    still_ours()
                log.flush()
                checkpoints.save(state, evaluated and evaluated.loss)
            if watched and not stopping and is_due(step, config.downstream.every):
                seen = watched(state.params, give_up=lambda: told.is_urgent)
                log.write(step, {"tokens": step * speed.tokens, "seconds": clock.seconds} | seen)
        if last:
            break
    seconds = clock.seconds
    checkpoints.wait()
    progress.close()
    log.flush()
    if step < stop:
        raise preempted(step, saved=True)

    # Sum up.
    if evaluated is None or config.evaluate.batches:
        evaluated = evaluator(state.params, give_up=lambda: told.is_urgent)
    if evaluated is None:
        raise preempted(step, saved=True)
    summary = {
        "config": config.to_dict(),
        "version": __version__,
        "jax": jax.__version__,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "parameters": parameters,
        "steps": step,
        "tokens": step * speed.tokens,
        "train_seconds": round(seconds, 3),
        "tokens_per_second": round(step * speed.tokens / max(seconds, 1e-9), 1),
        "flops": speed.flops * step,
        "eval": {"split": "validation", "step": step} | finite(evaluated._asdict()),
    }
    if is_first():
        comparable = evaluated.loss == evaluated.token_loss
        with access(f"write the workdir {workdir}"):
            write(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
            plot_loss(workdir, unigram_loss=evaluated.unigram_loss if comparable else None)
    sizes = ("parameters", "train_seconds", "flops")
    held_out = {f"validation_{name}": value for name, value in evaluated.numbers().items()}
    log.summary(step, {name: summary[name] for name in sizes} | held_out)
    log.close(done=True)
    return summary


class Done(NamedTuple):
    """A step that has been sent off: its metrics are on their way."""

    step: int
    metrics: Metrics
    logged: bool
    passed_over: int


class Speed(NamedTuple):
    """What a step is worth: tokens, operations, and the peak of the devices (None if unknown)."""

    tokens: int
    flops: int
    peak: float | None


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
            total_steps=pieces.config.train.steps,
            microbatches=pieces.config.train.microbatches,
        ).lower(pieces.abstract, abstract_batch(pieces), abstract_seed(pieces))
        self._seed = placed_seed(pieces)
        self._steps_seconds: tuple[int, float] | None = None
        self._cost_said = False

    def compile(self) -> None:
        """Compiles; the clock of the run stands still meanwhile."""
        self._function = self._function.compile()

    def measure(self, state: TrainState, batch: Batch, step: int, log, clock) -> TrainState:
        """Measures on the batch of the next step, logs, warns, and prints once what it costs."""
        jax.block_until_ready(state)
        before = clock.seconds
        state, metrics = self._function(state, batch, self._seed)
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


class Watched:
    """Downstream tasks, measured now and then while training, by their cheapest method.

    Args:
        pieces: of the run.
    """

    def __init__(self, pieces: Pieces):
        tasks = downstream_tasks(pieces.config).items()
        self._tasks = {name: (task, downstream.load(name, task)) for name, task in tasks}
        self._settings = DownstreamSettings(**pieces.config.downstream)
        self._pieces = pieces

    def __call__(self, params: dict, give_up: Callable[[], bool]) -> dict[str, float]:
        """The metrics of the tasks by ``task/NAME``, as far as they get until it gives up."""
        model, found = model_of(self._pieces, params), {}
        for name, (task, rows) in self._tasks.items():
            if not give_up():
                found[f"task/{name}"] = downstream.glance(task, rows, model, self._settings)
        return {name: value for name, value in found.items() if value is not None}


def look(guard: Guard, pieces, workdir, speed: Speed, log, progress, clock, done: Done) -> bool:
    """Fetches the metrics of a step, writes them if they are logged, and asks the guard.

    Returns:
        Whether to roll back.
    """
    bad = bool(jax.device_get(done.metrics["left_out"]))
    if not (bad or done.logged):
        return guard.see(done.step, {"left_out": 0.0}, "")
    values = {name: float(value) for name, value in jax.device_get(done.metrics).items()}
    written = values | clock.speed(done.step, speed.tokens, speed.flops, speed.peak)
    over = done.passed_over
    if bad:
        written |= {"rows": read_batch(pieces, done.step - 1 + over).row_ids.tolist()}
    log.write(done.step, written)
    shown = {"loss": "loss", "lr": "learning_rate", "tokens/s": "tokens_per_second", "MFU": "mfu"}
    progress.show(done.step, {name: written.get(key) for name, key in shown.items()})
    replay = f"jaxpretrain replay --workdir={workdir} --step={done.step} --passed-over={over}"
    return guard.see(done.step, values, replay)


def write_evaluation(step, evaluated: HeldOut, speed: Speed, log, progress, clock) -> None:
    """Writes the held-out numbers of a step."""
    held = {f"eval_{key}": value for key, value in evaluated.numbers().items()}
    log.write(step, {"tokens": step * speed.tokens, "seconds": clock.seconds} | held)
    progress.show(step, {"held-out loss": evaluated.loss}, always=True)


def stream(pieces: Pieces, state: TrainState, stop: int) -> Iterator[Batch]:
    """The batches that follow a state, the first of which has been read: files are open."""
    over = int(state.passed_over)
    batches = training_batches(pieces, int(state.step) + over, stop + over)
    first = list(itertools.islice(batches, 1))

    def all_of_them():
        try:
            yield from first
            yield from batches
        finally:
            batches.close()

    return all_of_them()


def replaced(x: jax.Array, value: int) -> jax.Array:
    """An array like a scalar, with another value, where the scalar is."""
    return jax.jit(lambda: jax.numpy.full(x.shape, value, x.dtype), out_shardings=x.sharding)()


def preempted(step: int, *, saved: bool) -> SystemExit:
    """What ends a run that was told to stop."""
    what = f"after step {step}, saved" if saved else f"before a step after {step}"
    say(f"preempted: stopped by SIGTERM {what}; the same command goes on from there")
    return SystemExit(PREEMPTED)


def is_due(step: int, every: int) -> bool:
    """Whether something done every so many steps (0: never) is done after this one."""
    return every > 0 and step % every == 0
