"""Findings about single runs of an ablation, or the data that they read."""

import itertools
import math
import statistics

from jaxpretrain.report.findings_compare import (
    LEAST_LOSS,
    LEAST_SCORE,
    Finding,
    apart,
    cells_of,
    count,
    finite,
    is_number,
    losses,
    mean_of,
    objective,
    shown,
    width,
)
from jaxpretrain.report.results import CellResult, Interval, Results, Row

# Mean share of the gradient: four times what all the others have together. The alarm in training
# (`Mixture.alarm_share`) is for single measurements and set higher, 0.9.
DROWNS = 0.8
# Gradients of unrelated tasks have cosines near 0 in so many dimensions; from here on a step for
# the one undoes a visible part of a step for the other.
FIGHTS = -0.1
LEAST_MEASUREMENTS = 5  # of a mixture's gradients; the scatter of fewer is hardly known
# Nats: the text trained on is ten percent of perplexity easier than unseen text.
GAP = 0.1
# Nats above its lowest point that the validation loss must be at the last two measurements: twice
# the least difference that counts, for single measurements wobble.
RISE = 2 * LEAST_LOSS
# Lee et al. 2022 (arXiv:2107.06499) found 0.4 % to 14 % of the documents of four common corpora to
# be near-duplicates, by a measure somewhat like ours.
DUPLICATES = 0.15
LEAST_DOCUMENTS = 100  # below which a share of them says little
# Nats: 28 % of perplexity, far beyond what the order of training or a few more tokens change.
FAR = 0.25
# Nats: five percent of perplexity, in the second half of a run.
FELL = 0.05
LEAST_POINTS = 3  # of a curve
# Of a task's interval: a wider one would hide a rise worth having, so its absence shows nothing.
WIDEST = 0.1


def leak(results: Results) -> list[Finding]:
    """Probes that do better than chance on shuffled labels."""
    probes = [
        (cell["group"], key, task["shuffled"])
        for cell in results["cells"].values()
        for key, task in cell["tasks"].items()
        if finite(task["shuffled"]) and is_number(task["shuffled"]["chance"])
    ]
    if not probes:
        return []
    # Of 40 such intervals one lies above chance by luck; widened, all of them are right at once.
    normal = statistics.NormalDist()
    wider = normal.inv_cdf(1 - 0.05 / (2 * len(probes))) / normal.inv_cdf(0.975)
    found: dict[str, list[str]] = {}
    for group, key, probe in probes:
        above = probe["mean"] - probe["chance"]
        luck = max(LEAST_SCORE, wider * (probe["mean"] - probe["low"]))
        if above > luck:
            found.setdefault(key, []).append(
                f"{group} has {shown(probe)} on shuffled labels, where chance is "
                f"{probe['chance']:.3f}"
            )
    return [
        Finding(
            f"Something leaks into {key}",
            f"{'; '.join(said)} (of {len(probes)} probes in all).",
            f"Trust no number of {key} before it is known why: look for test rows among the "
            "training rows, the same text in several rows, and settings chosen on the test rows.",
            "leak",
        )
        for key, said in found.items()
    ]


def drowning(results: Results) -> list[Finding]:
    """Tasks of a mixture that have nearly all of the gradient."""
    found = []
    for row in results["rows"]:
        shares = _late_balance(results, row, "gradient_share/")
        for task, numbers in shares.items():
            share = mean_of(numbers)
            if len(shares) < 2 or share["low"] <= DROWNS:
                continue
            rest = ", ".join(
                f"{other} {statistics.fmean(own):.3f}"
                for other, own in shares.items()
                if other != task
            )
            found.append(
                Finding(
                    f"{task} drowns out the other tasks of {row['group']}",
                    f"In the second half of the training {task} has {shown(share)} of the gradient "
                    f"over {len(numbers)} measurements, {rest}.",
                    f"Lower objective.tasks.{task}.weight, or set objective.weighting=equal_share.",
                    "one_task_drowns_others",
                )
            )
    return found


def fighting(results: Results) -> list[Finding]:
    """Pairs of tasks of a mixture whose gradients point against each other."""
    found = []
    for row in results["rows"]:
        for pair, numbers in _late_balance(results, row, "gradient_cosine/").items():
            cosine = mean_of(numbers)
            if cosine["mean"] >= FIGHTS or cosine["high"] >= 0:
                continue
            names = pair.replace("~", " and ")
            found.append(
                Finding(
                    f"{names} work against each other in {row['group']}",
                    f"In the second half of the training the cosine of the gradients of {names} is "
                    f"{shown(cosine)} over {len(numbers)} measurements.",
                    "Compare with each of them alone; one after the other may do better, or the "
                    "more important one only.",
                    "tasks_fight",
                )
            )
    return found


def _late_balance(results: Results, row: Row, prefix: str) -> dict[str, list[float]]:
    """Measurements of the second halves of a group's runs, where there are enough, by task."""
    found: dict[str, list[float]] = {}
    for cell in cells_of(results, row):
        late = cell["balance"][len(cell["balance"]) // 2 :]
        for key, number in itertools.chain.from_iterable(entry.items() for entry in late):
            if key.startswith(prefix) and is_number(number):
                found.setdefault(key.removeprefix(prefix), []).append(number)
    return {key: own for key, own in found.items() if len(own) >= LEAST_MEASUREMENTS}


def overfitting(results: Results) -> list[Finding]:
    """Groups that know their training text much better than other text."""
    gaps = {row["group"]: _gap(results, row) for row in results["rows"]}
    comparable = any(column["key"] == "loss" for column in losses(results))
    said = []
    for row in results["rows"]:
        gap = gaps[row["group"]]
        if gap is None or gap["low"] <= 0 or gap["mean"] <= GAP:
            continue
        # A group that has learned less has a smaller gap: only one that is no worse on other text
        # tells what could be had without it.
        others = [
            (other["group"], gaps[other["group"]])
            for other in results["rows"]
            if gaps[other["group"]]
            and objective(results, other) == objective(results, row)
            and _validation(results, other) <= _validation(results, row)
        ]
        least, smallest = min(others, key=lambda pair: pair[1]["mean"])
        larger = apart(gap, smallest) and gap["mean"] - smallest["mean"] > GAP and comparable
        rises = [_rise(cell) for cell in cells_of(results, row)]
        rising = all(rise is not None for rise in rises)
        if not larger and not rising:
            continue
        sentence = (
            f"the validation loss of {row['group']} is {shown(gap)} above the training text's"
        )
        if larger:
            sentence += f", that of {least} {shown(smallest)}"
        if rising:
            low, last = (statistics.fmean(numbers) for numbers in zip(*rises, strict=True))
            sentence += f"; in training it fell to {low:.3f} and rose to {last:.3f}"
        said.append(sentence)
    if not said:
        return []
    return [
        Finding(
            "The training text is learned by heart",
            f"{'. '.join(said).removesuffix('.')}.",
            "Use more or more varied text, read it fewer times, or train a smaller model on it.",
            "uniform_data",
        )
    ]


def _validation(results: Results, row: Row) -> float:
    """The validation loss of a group; infinite where there is none."""
    values = [cell["validation"].get("loss") for cell in cells_of(results, row)]
    return statistics.fmean(math.inf if value is None else value for value in values)


def _gap(results: Results, row: Row) -> Interval | None:
    """Validation loss minus loss on training rows, with an interval that is on the wide side.

    Both are measured on about as many rows as the test loss, whose interval tells how wide theirs
    are.
    """
    gaps, widths = [], []
    for cell in cells_of(results, row):
        both = [(cell[split] or {}).get("loss") for split in ("validation", "train")]
        test = finite(cell["test_loss"])
        if test is None or not all(map(is_number, both)) or width(test) <= 0:
            return None
        gaps.append(both[0] - both[1])
        widths.append(width(test))
    if not gaps:
        return None
    # The half widths of two independent means add up to sqrt(2) of one.
    mean, error = statistics.fmean(gaps), math.sqrt(2) / 2 * max(widths)
    return {"mean": mean, "low": mean - error, "high": mean + error}


def _rise(cell: CellResult) -> tuple[float, float] | None:
    """The lowest and the last validation loss of a run that ends clearly above its lowest."""
    curve = [e["eval_loss"] for e in cell["curve"] if is_number(e.get("eval_loss"))]
    if len(curve) < LEAST_POINTS or min(curve[-2:]) < min(curve) + RISE:
        return None
    return min(curve), curve[-1]


def near_duplicates(results: Results) -> list[Finding]:
    """Stores of which many documents are near-duplicates."""
    said = [
        f"{data['near_duplicates']:.1%} of the {data['documents']} documents of "
        f"{', '.join(data['cells'])}"
        for data in results["data"]
        if is_number(data["near_duplicates"])
        and data["near_duplicates"] > DUPLICATES
        and data["documents"] >= LEAST_DOCUMENTS
    ]
    if not said:
        return []
    return [
        Finding(
            "Many near-duplicates in the training text",
            f"{'; '.join(said)} share half or more of their text with another one.",
            "Remove near-duplicates before training: the model learns them by heart, and those of "
            "them that are held out make the losses look better than they are.",
            "uniform_data",
        )
    ]


def unseen_source(results: Results) -> list[Finding]:
    """Groups trained on one source that are far worse on another than groups that saw it."""
    if not any(column["key"] == "loss" for column in losses(results)):
        return []
    seen = {
        name: {source for source, tokens in data["sources"].items() if tokens}
        for data in results["data"]
        for name in data["cells"]
    }
    said = []
    for row in results["rows"]:
        own = {source for name in row["cells"] for source in seen.get(name, ())}
        if len(own) != 1:
            continue
        (only,) = own
        for source, (loss, error) in _by_source(results, row).items():
            if source == only:
                continue
            others = [
                (other["group"], *_by_source(results, other)[source])
                for other in results["rows"]
                if objective(results, other) == objective(results, row)
                and source in _by_source(results, other)
                and all(source in seen.get(name, ()) for name in other["cells"])
            ]
            if not others:
                continue
            group, known, noise = min(others, key=lambda other: other[1])
            if loss - known > max(FAR, error + noise):
                said.append(
                    f"{row['group']} was trained on {only} alone and has a loss of {loss:.3f} on "
                    f"{source}, {loss - known:.3f} above the {known:.3f} of {group}, which saw it"
                )
    if not said:
        return []
    return [
        Finding(
            "One source does not stand for the others",
            f"{'; '.join(said)}.",
            "Mix the sources that the model is to be used on into the training text.",
            "uniform_data",
        )
    ]


def _by_source(results: Results, row: Row) -> dict[str, tuple[float, float]]:
    """Mean loss on each source and about how uncertain it is.

    A source has a part of the test rows, so its loss is less certain than that of all by the square
    root of how many sources there are.
    """
    found = {}
    cells = cells_of(results, row)
    widths = [width(test) for cell in cells if (test := finite(cell["test_loss"]))]
    for source in cells[0]["by_source"] if cells else ():
        numbers = [cell["by_source"].get(source) for cell in cells]
        if all(map(is_number, numbers)) and max(widths, default=0) > 0:
            error = max(widths) / 2 * math.sqrt(len(cells[0]["by_source"]))
            found[source] = statistics.fmean(numbers), error
    return found


def loss_fell_alone(results: Results) -> list[Finding]:
    """Tasks that did not rise in the second half of runs in which the held-out loss fell."""
    found: dict[str, list[str]] = {}
    for row in results["rows"]:
        cells = cells_of(results, row)
        keys = {key for cell in cells for entry in cell["curve"] for key in entry}
        for task in sorted(key.removeprefix("task/") for key in keys if key.startswith("task/")):
            said = [_fell_alone(cell, task) for cell in cells]
            if all(said):  # in every seed
                others = f", and likewise in {count(len(said), 'seed')}" if said[1:] else ""
                found.setdefault(task, []).append(f"{row['group']}: {said[0]}{others}")
    return [
        Finding(
            f"The pretraining loss fell while {task} did not rise",
            f"In the second half of the training, {'; '.join(said)}.",
            f"More of this pretraining does not help {task}: stop earlier, or change the objective "
            "or the data rather than the budget.",
            "loss_fell_downstream_did_not",
        )
        for task, said in found.items()
    ]


def _fell_alone(cell: CellResult, task: str) -> str | None:
    key = f"task/{task}"
    curve = [e for e in cell["curve"] if is_number(e.get("eval_loss")) and is_number(e.get(key))]
    widths = [
        width(result)
        for name, result in cell["tasks"].items()
        if (name == task or name.startswith(f"{task}/")) and finite(result)
    ]
    end = max((entry["step"] for entry in cell["curve"]), default=0)
    late = [entry for entry in curve if entry["step"] >= end / 2]
    if len(late) < LEAST_POINTS or not 0 < max(widths, default=0) <= WIDEST:
        return None
    first, last, noise = late[0], late[-1], max(widths)
    fell = first["eval_loss"] - last["eval_loss"]
    highest = max(entry[key] for entry in late[1:])
    room = 1 - first[key] > noise  # no task goes beyond 1
    if fell < FELL or highest - first[key] > noise or not room:
        return None
    return (
        f"the held-out loss fell from {first['eval_loss']:.3f} to {last['eval_loss']:.3f} and the "
        f"task went from {first[key]:.3f} to {last[key]:.3f}, where its interval is {noise:.3f} "
        "wide"
    )
