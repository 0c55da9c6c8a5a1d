"""The settings of a run that belong to no other component, with their defaults and limits."""

from dataclasses import dataclass, field
from typing import Any, Literal

from jaxpretrain.errors import UserError
from jaxpretrain.trackers import names_of


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """Where the prepared tokens are.

    Attributes:
        path: folder, here or in an object store (``gs://``); empty means one under
            ``runs/stores`` named after source and tokenizer.
        cache: folder for the copy of a store that is in an object store; empty means the user's
            cache.
        validation_fraction: share of the documents held out to watch the training.
        test_fraction: share of the documents held out for the final evaluation.
        workers: processes that tokenize; 0 means one per core.
    """

    path: str = ""
    cache: str = ""
    validation_fraction: float = 0.02
    test_fraction: float = 0.02
    workers: int = 0

    def __post_init__(self):
        low = min(self.validation_fraction, self.test_fraction)
        if low < 0 or self.validation_fraction + self.test_fraction >= 1:
            raise UserError(
                f"store.validation_fraction is {self.validation_fraction} and test_fraction "
                f"{self.test_fraction}: neither may be negative, and their sum must be below 1"
            )
        if self.workers < 0:
            raise UserError(f"store.workers is {self.workers}: it must not be negative")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How a step's rows are cut and read.

    Attributes:
        length: tokens in a row.
        batch_size: rows in a step, over all devices and microbatches.
        view: how rows are cut: "packed" (documents laid end to end), "document" (each row a window
            of one document, padded), or "auto" for what the objective prefers.
        loader: "tf" (tf.data), "threads" (no TensorFlow) or "auto"; the batches are the same.
        prefetch: batches kept on the devices ahead of use.
    """

    length: int = 128
    batch_size: int = 32
    view: Literal["auto", "packed", "document"] = "auto"
    loader: Literal["auto", "tf", "threads"] = "auto"
    prefetch: int = 2

    def __post_init__(self):
        _at_least("data", self, length=2, batch_size=1, prefetch=1)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How long to train, and how often to say so.

    Attributes:
        steps: updates in the run; the schedules are laid out over them.
        stop_at: stop and save after this many updates, to go on later; 0 means at the end.
        microbatches: parts that a step's rows are divided into, to fit into memory.
        log_every: steps between two logged ones.
    """

    steps: int = 1000
    stop_at: int = 0
    microbatches: int = 1
    log_every: int = 20

    def __post_init__(self):
        _at_least("train", self, steps=1, stop_at=0, microbatches=1, log_every=1)


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """When to save, and how many to keep besides the one with the best held-out loss.

    Attributes:
        every: steps between two saves, each with an evaluation; 0 means at the end only.
        keep_latest: how many of the latest to keep; with two, a damaged one has one before it.
        grace_seconds: from a SIGTERM until the run must have saved and ended; what the scheduler
            leaves until SIGKILL (30 s on Kubernetes and on spot machines of Google Cloud), or less.
            Several processes count from the step after which they have all heard of it.
    """

    every: int = 500
    keep_latest: int = 2
    grace_seconds: float = 25.0

    def __post_init__(self):
        _at_least("checkpoint", self, every=0, keep_latest=1, grace_seconds=1)


@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """What to do at a step whose loss or gradient is no finite number, or too large.

    Its update is left out in any case, and step and rows are said, for ``jaxpretrain replay``.

    Attributes:
        policy: "stop" the run; "skip" the update and go on; or "roll_back" to the last checkpoint
            and go on from there with the rows after those of the bad step, as PaLM did (Chowdhery
            et al. 2022, arXiv:2204.02311, section 5.1).
        largest_grad_norm: a gradient above it, before clipping, is too large; 0 for no limit.
        allowed: bad steps in a row, or times that the run was rolled back, before it stops.
    """

    policy: Literal["stop", "skip", "roll_back"] = "stop"
    largest_grad_norm: float = 0.0
    allowed: int = 10

    def __post_init__(self):
        _at_least("guard", self, largest_grad_norm=0, allowed=1)


@dataclass(frozen=True, kw_only=True)
class TrackSettings:
    """Who shows the numbers of a run, beside ``metrics.jsonl``.

    Attributes:
        to: "tensorboard", "wandb" or "mlflow", several with commas, or none. Where the last two
            are and whether they are reached is said by their own environment variables.
        project: of W&B, and the experiment of MLflow; empty means what their variables say.
        name: of the run; empty means the workdir's.
    """

    to: str = "tensorboard"
    project: str = ""
    name: str = ""

    def __post_init__(self):
        names_of(self.to)


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Held-out evaluation while training: every so many steps (0: at the end only).

    Attributes:
        every: steps between two evaluations.
        batches: how many batches of the held-out rows to read, spread over all of them; 0 means
            all, as at the end of a run and in the `evaluate` command.
    """

    every: int = 200
    batches: int = 0

    def __post_init__(self):
        _at_least("evaluate", self, every=0, batches=0)


@dataclass(frozen=True, kw_only=True)
class DownstreamSettings:
    """How downstream tasks are learned, the same for every objective.

    Attributes:
        every: steps between two measurements while training, by probes alone, with one seed; 0
            means only when `evaluate` or `ablate` does it.
        seeds: of drawing the training rows, of heads and of fine-tuning, from 0.
        learning_rates: the grid of a fine-tune, tried with the first seed; the one that is best on
            the dev rows is taken. A head alone has ten times these.
        epochs: passes over the training rows.
        batch_size: rows of an update.
        pooling: the vector of a text: the "mean" over its tokens, or that of the first ("cls") or
            of the last one.
    """

    every: int = 0
    seeds: int = 3
    learning_rates: list[float] = field(default_factory=lambda: [5e-5, 2e-4, 8e-4])
    epochs: int = 3
    batch_size: int = 32
    pooling: Literal["mean", "cls", "last"] = "mean"

    def __post_init__(self):
        _at_least("downstream", self, every=0, seeds=1, epochs=1, batch_size=1)
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise UserError(
                f"downstream.learning_rates is {self.learning_rates}: give some, all above 0"
            )


def _at_least(section: str, settings: Any, **lowest: int) -> None:
    for name, low in lowest.items():
        value = getattr(settings, name)
        if value < low:
            raise UserError(f"{section}.{name} is {value}: it must be at least {low}")
