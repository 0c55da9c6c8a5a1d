"""Findings about how the groups of an ablation differ, or that they do not."""

import itertools

from jaxpretrain.report.findings_compare import (
    Finding,
    alike,
    apart,
    best,
    better,
    cells_of,
    count,
    difference,
    downstream,
    having,
    is_number,
    losses,
    objective,
    shown,
    value,
    versus,
    width,
)
from jaxpretrain.report.results import Column, Results, Row

CAUSAL = {"clm", "fim", "mtp"}
TWO_SIDED = {"mlm", "span_mlm", "masked_diffusion", "rtd", "bert", "albert"}
# Beside the objective: what makes two models, or what they read, unlike.
NOT_THE_OBJECTIVE = ("model.width", "model.layers", "source.", "store.", "tokenizer.")


def masking(results: Results) -> list[Finding]:
    """Masking rates that are too low or too high for this budget."""
    varied = [key for row in results["rows"] for key in row["varied"]]
    found = []
    for key in dict.fromkeys(varied):
        if key.startswith("objective.") and key.endswith(".mask_rate"):
            rows = [row for row in results["rows"] if is_number(row["varied"].get(key))]
            # Where the budget is not in tokens, the number of steps follows from the rate.
            for same in alike(rows, lambda other, key=key: other not in (key, "train.steps")):
                found += _masking(results, key, same)
    return found


def _masking(results: Results, key: str, rows: list[Row]) -> list[Finding]:
    def at(row: Row, column: Column) -> str:
        return f"{shown(value(row, column))} at {row['varied'][key]:g} ({row['group']})"

    said: dict[str, list[str]] = {"masking_too_little": [], "masking_too_much": []}
    elsewhere, by_loss = [], None
    held_out = losses(results)[:1]
    for column in [*held_out, *downstream(results)]:
        there = sorted(having(rows, column), key=lambda row: row["varied"][key])
        if len(there) < 2:
            continue
        top = best(there, column)
        by_loss = top if column in held_out else by_loss
        near = [
            f"{r['varied'][key]:g}" for r in there if r is not top and not better(column, top, r)
        ]
        close = f", {' and '.join(near)} within the noise of it" if near else ""
        for kind, end in zip(said, (there[0], there[-1]), strict=True):
            if better(column, top, end):
                said[kind].append(
                    f"{column['label']} is {at(end, column)} and best at "
                    f"{top['varied'][key]:g}, {shown(value(top, column))}, a difference of "
                    f"{difference(column, top, end):.3f}{close}"
                )
        if by_loss and column not in held_out and better(column, top, by_loss):
            elsewhere.append(
                f"the held-out loss is best at {by_loss['varied'][key]:g}, but {column['label']} "
                f"is {at(top, column)} against {at(by_loss, column)}"
            )
    what = {"masking_too_little": ("little", "Raise"), "masking_too_much": ("much", "Lower")}
    advice = (
        "choose by the task that matters, for the held-out loss prefers another rate"
        if elsewhere
        else "the best rate depends on the size of the model and the budget, so try it at yours"
    )
    return [
        Finding(
            f"Masking too {what[kind][0]}",
            f"{'; '.join(sentences + elsewhere)}.",
            f"{what[kind][1]} {key}; {advice}.",
            kind,
        )
        for kind, sentences in said.items()
        if sentences
    ]


def families(results: Results) -> list[Finding]:
    """Tasks at which causal objectives beat two-sided ones, or the reverse."""
    said: dict[str, list[str]] = {"causal": [], "two-sided": []}
    columns = downstream(results)
    for rows in alike(results["rows"], lambda key: key.startswith(NOT_THE_OBJECTIVE)):
        for column in columns:
            there = having(rows, column)
            causal = [row for row in there if objective(results, row) in CAUSAL]
            two_sided = [row for row in there if objective(results, row) in TWO_SIDED]
            if not causal or not two_sided:
                continue
            tops = {"causal": best(causal, column), "two-sided": best(two_sided, column)}
            for name, other in (("causal", "two-sided"), ("two-sided", "causal")):
                if better(column, tops[name], tops[other]):
                    said[name].append(
                        f"{column['label']}: {versus(column, tops[name], tops[other])}, the best "
                        f"{other} one"
                    )
    why = {
        "causal": "A left-to-right likelihood, trained on every token, may be what decides here",
        "two-sided": "The words on both sides may be what decides here, and a causal model's "
        "vectors have seen those on the left only",
    }
    return [
        Finding(
            f"A {name} objective suits {count(len(sentences), 'task')} better",
            f"{'; '.join(sentences)}.",
            f"{why[name]}; for such a task pretrain with a {name} objective.",
            "objective_does_not_suit",
        )
        for name, sentences in said.items()
        if sentences
    ]


def at_chance(results: Results) -> list[Finding]:
    """Objectives that stay at chance at a task that others learn."""
    said: dict[str, list[str]] = {}
    columns = [column for column in downstream(results) if is_number(column["chance"])]
    groups = alike(results["rows"], lambda key: key.startswith(NOT_THE_OBJECTIVE))
    for rows, column in itertools.product(groups, columns):
        by_name: dict[str, list[Row]] = {}
        for row in having(rows, column):
            by_name.setdefault(objective(results, row), []).append(row)
        tops = {name: best(own, column) for name, own in by_name.items()}
        if len(tops) < 2:
            continue
        first, chance = best(list(tops.values()), column), column["chance"]
        for name, top in tops.items():
            learned = value(first, column)["low"] > chance >= value(top, column)["low"]
            if learned and better(column, first, top):
                said.setdefault(name, []).append(
                    f"{column['label']} (chance {chance:.3f}): {versus(column, first, top)}"
                )
    return [
        Finding(
            f"{name} stays at chance",
            f"{'; '.join(sentences)}.",
            f"What {name} is trained on does not teach this; use another objective for it, or mix "
            "one in.",
            "objective_does_not_suit",
        )
        for name, sentences in said.items()
    ]


def lower_loss_lower_score(results: Results) -> list[Finding]:
    """Of one objective, the group with the lowest loss is beaten at a task by another."""
    by_name: dict[str, list[Row]] = {}
    for row in results["rows"]:
        by_name.setdefault(objective(results, row), []).append(row)
    found = []
    for loss in losses(results)[:1]:
        for name, column in itertools.product(by_name, downstream(results)):
            rows = having(having(by_name[name], column), loss)
            if len(rows) < 2:
                continue
            low, high = best(rows, loss), best(rows, column)
            if better(loss, low, high) and better(column, high, low):
                found.append(
                    Finding(
                        f"A lower loss, and worse at {column['label']}",
                        f"Of the groups of {name}: {loss['label']}: {versus(loss, low, high)}; "
                        f"{column['label']}: {versus(column, high, low)}.",
                        f"Do not choose by the loss for {column['label']}; look at what else "
                        "differs between these two.",
                        "loss_fell_downstream_did_not",
                    )
                )
    return found


def nothing_decided(results: Results) -> list[Finding]:
    """No two groups can be told apart by any column."""
    columns = _compared(results)
    if not columns or _decided(results):
        return []
    said = []
    for column in columns:
        rows = having(results["rows"], column)
        means = [value(row, column)["mean"] for row in rows]
        widest = max(width(value(row, column)) for row in rows)
        said.append(
            f"{column['label']} is between {min(means):.3f} and {max(means):.3f}, with intervals "
            f"up to {widest:.3f} wide"
        )
    budget = ", ".join(f"{amount:g} {unit}" for unit, amount in results["budget"].items())
    seeds = sorted({len(row["cells"]) for row in results["rows"]})
    each = count(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    return [
        Finding(
            "No difference is real",
            f"No group is better than another beyond the noise: {'; '.join(said)}.",
            f"These numbers cannot tell the groups apart, so choose none by them. More seeds "
            f"(each group has {each}), more test rows or a larger budget (it was {budget}) might.",
            "nothing_decided",
        )
    ]


def one_seed(results: Results) -> list[Finding]:
    """Differences of which it is not known whether another seed would show them."""
    if not _decided(results) or not _one_seed_each(results):
        return []
    return [
        Finding(
            "One seed each",
            f"Each of the {len(results['rows'])} groups was pretrained with one seed, so the "
            "intervals cover the test rows, not the seeds of pretraining.",
            "Before a small difference decides anything, pretrain with more seeds: "
            '"seeds": [0, 1, 2] in the file of the ablation.',
            "one_seed",
        )
    ]


def _compared(results: Results) -> list[Column]:
    return [
        column
        for column in results["columns"]
        if column["comparable"] and len(having(results["rows"], column)) > 1
    ]


def _decided(results: Results) -> bool:
    """Whether any two groups differ beyond the noise."""
    return any(
        column["best"] is not None
        or any(
            apart(value(a, column), value(b, column))
            for a, b in itertools.combinations(having(results["rows"], column), 2)
        )
        for column in _compared(results)
    )


def _one_seed_each(results: Results) -> bool:
    seeds = [{cell["seed"] for cell in cells_of(results, row)} for row in results["rows"]]
    return all(len(own) == 1 for own in seeds)
