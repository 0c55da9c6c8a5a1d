"""What an ablation found, as ``results.json`` holds it and the report and its findings read it.

Plain dicts of plain values. Losses are in nats, intervals are 95 % bootstrap intervals.
"""

from typing import Any, Literal, TypedDict


class Interval(TypedDict):
    """A mean with its 95 % interval; both ends equal the mean where there is nothing to resample.

    Attributes:
        mean: over seeds.
        low: end of the interval.
        high: end of the interval.
    """

    mean: float
    low: float
    high: float


class Shuffled(TypedDict):
    """The probe again with its training labels shuffled, several times.

    Attributes:
        mean: balanced accuracy (of classes) or Pearson's correlation (of numbers).
        low: end of the interval.
        high: end of the interval.
        chance: what a probe that has learned nothing has.
        at_chance: whether chance is in the interval.
    """

    mean: float
    low: float
    high: float
    chance: float
    at_chance: bool


class TaskResult(TypedDict):
    """How a model does at one downstream task by one method.

    Attributes:
        kind: "classification", "regression", "similarity", "question_answering" or
            "minimal_pairs".
        method: "probe" (a linear model on the frozen backbone), "finetune" (all of it is trained),
            "cosine" (of pooled vectors, nothing is trained) or "likelihood" (nothing either).
        metric: "accuracy", "f1", "matthews", "pearson", "spearman" or "exact_match"; the higher,
            the better.
        mean: of the metric over the seeds, on the test rows.
        low: end of the interval, over test rows (bootstrap) and seeds (Student's t).
        high: end of the interval.
        seeds: the metric by seed.
        chance: of the metric, without looking at the text: the most common class, one number for
            all; None where there is no such thing.
        more: other metrics by name, means over the seeds.
        rows: how many, by "train", "dev" and "test".
        learning_rate: of the fine-tune, chosen on the dev rows; None where nothing is trained so.
        grid: the metric on the dev rows by learning rate (as text) that was tried, or empty.
        shuffled: None where no probe was trained.
        groups: the metric by phenomenon, of minimal pairs; else empty.
    """

    kind: str
    method: str
    metric: str
    mean: float
    low: float
    high: float
    seeds: list[float]
    chance: float | None
    more: dict[str, float]
    rows: dict[str, int]
    learning_rate: float | None
    grid: dict[str, float]
    shuffled: Shuffled | None
    groups: dict[str, float]


class Sample(TypedDict):
    """A prediction on a test document.

    Attributes:
        given: the text, with ``[MASK]`` where a word is hidden.
        made: what the model says: candidates with probabilities, or a continuation.
        truth: what was hidden; "" for a continuation.
    """

    given: str
    made: str
    truth: str


class CellResult(TypedDict):
    """One run of an ablation.

    Attributes:
        group: cells of one group differ in ``seed`` only.
        seed: of the pretraining.
        settings: all of the config, by dotted key.
        versions: of jaxpretrain and jax, and the device, by name.
        parameters: how many.
        steps: updates.
        tokens: read in training.
        flops: floating-point operations of training.
        train_seconds: of training.
        curve: the log of the run. Each entry has ``step``, ``tokens``, ``flops`` and ``seconds``,
            and some of ``loss`` (of the training batch), ``eval_loss``, other ``eval_*`` numbers
            of the validation documents, and ``task/NAME`` (the metric of a task, measured while
            training).
        balance: of a mixture: entries with ``step``, ``gradient_share/TASK``, the share of the
            summed norms of the tasks' weighted gradients, and ``gradient_cosine/TASK~TASK``; else
            empty.
        validation: see `evaluation.heldout.HeldOut`, as a dict.
        train: the same on as many rows of the training documents; None if not measured.
        test: the same on the test documents.
        test_loss: with its interval over the test rows.
        by_source: loss on the test documents of each source, where there are several.
        others: held-out numbers (as `test`) under other objectives, by name.
        tasks: by name and method, as in ``"sst2/probe"``.
        samples: predictions to look at.
    """

    group: str
    seed: int
    settings: dict[str, Any]
    versions: dict[str, str]
    parameters: int
    steps: int
    tokens: int
    flops: float
    train_seconds: float
    curve: list[dict[str, float]]
    balance: list[dict[str, float]]
    validation: dict[str, Any]
    train: dict[str, Any] | None
    test: dict[str, Any]
    test_loss: Interval
    by_source: dict[str, float]
    others: dict[str, dict[str, Any]]
    tasks: dict[str, TaskResult]
    samples: list[Sample]


class Column(TypedDict):
    """A number that groups are compared by.

    Attributes:
        key: in `Row.values`: "loss", "bits_per_byte", "sst2/probe", …
        label: to read.
        unit: "nats per token", "bits", "accuracy", …
        better: which end is.
        chance: of a task, if it has one.
        best: the group that is better than each of the others by a difference whose 95 % interval
            leaves out 0 (paired by test rows); None where there is none.
        comparable: whether the groups' numbers are of the same thing.
        note: why not, or "".
    """

    key: str
    label: str
    unit: str
    better: Literal["lower", "higher"]
    chance: float | None
    best: str | None
    comparable: bool
    note: str


class Row(TypedDict):
    """A group of cells that differ in the seed only.

    Attributes:
        group: its name.
        cells: names of its cells.
        varied: what distinguishes it from the other groups, by dotted key.
        values: by column key; a column may be missing.
    """

    group: str
    cells: list[str]
    varied: dict[str, Any]
    values: dict[str, Interval]


class Data(TypedDict):
    """The text of one token store, read in one mixture of its sources.

    Attributes:
        cells: names of the cells that read it.
        documents: in the training split.
        near_duplicates: share of (a sample of) these that have a near-duplicate among them, by
            13-token shingles of which half or more are shared; None if not measured.
        sources: tokens that a cell read in training, by source; without those that were as good as
            not read.
    """

    cells: list[str]
    documents: int
    near_duplicates: float | None
    sources: dict[str, int]


class Results(TypedDict):
    """An ablation.

    Attributes:
        name: of it.
        about: what its file says of itself.
        budget: one of "tokens", "flops" and "seconds", and how much of it each cell has.
        studied: dotted keys and sections in which the cells may differ.
        equal: settings that all cells have alike, by dotted key.
        columns: in the order of the table.
        rows: in the order of the file.
        cells: by name.
        data: of each token store.
        missing: names of the cells that are not done.
    """

    name: str
    about: str
    budget: dict[str, float]
    studied: list[str]
    equal: dict[str, Any]
    columns: list[Column]
    rows: list[Row]
    cells: dict[str, CellResult]
    data: list[Data]
    missing: list[str]
