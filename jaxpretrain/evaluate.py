"""The ``evaluate`` command: a finished run, measured on held-out documents and shown."""

import copy
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxpretrain.assemble import Evaluator, Pieces, assemble, identity, model_of
from jaxpretrain.config import complete, downstream_tasks, override
from jaxpretrain.errors import UserError
from jaxpretrain.evaluation import downstream
from jaxpretrain.evaluation.heldout import HeldOut, loss_replicates
from jaxpretrain.evaluation.measures import interval
from jaxpretrain.evaluation.samples import continue_text, fill_gaps
from jaxpretrain.metrics import finite
from jaxpretrain.objectives import OBJECTIVES
from jaxpretrain.processes import is_first, say, wait_for_all
from jaxpretrain.reopen import restored
from jaxpretrain.report.results import Sample
from jaxpretrain.schema import did_you_mean, flatten
from jaxpretrain.settings import DownstreamSettings
from jaxpretrain.storage import AnyPath, access, write
from jaxpretrain.trackers import check_installed, open_trackers
from jaxpretrain.workdir import check_identity, is_free, open_run


def evaluate(
    workdir: AnyPath,
    *,
    split: str = "test",
    which: str = "best",
    overrides: dict[str, str] | None = None,
    tasks: Sequence[str] = (),
    others: Sequence[str] = (),
    for_report: bool = False,
    sections: dict[str, dict] | None = None,
) -> dict:
    """Measures a run's checkpoint on a held-out split and prints what a person wants to see.

    Args:
        workdir: folder of the run.
        split: "test" or "validation".
        which: the "best" checkpoint by validation loss, or the "latest".
        overrides: dotted keys and text on top of the run's stored config.
        tasks: names of downstream tasks of the config, or "all".
        others: objectives under which the held-out loss is measured besides, with their defaults.
        for_report: measure on training documents and on each source too, and leave out those of
            the `others` that the backbone cannot compute.
        sections: of the config, to take the place of the stored ones: tasks and how to learn them.

    Returns:
        What ``evaluation.json`` in the workdir then holds: a split, a checkpoint, what `HeldOut`
        has, and ``loss_interval``, ``others``, ``tasks`` and ``samples`` as in
        `report.results.CellResult`; ``changed``, the keys of objective and data that were not as
        in the training; and ``replicates``, what the bootstrap gave by column.

    Raises:
        UserError: the folder holds no run, or no checkpoint yet; the overrides make it another
            model, or are of tasks and none is to be measured.
    """
    config, changed = asked(open_run(workdir) | (sections or {}), overrides or {}, tasks)
    pieces = assemble(config)
    check_identity(workdir, identity(pieces))
    if is_first():
        check_installed(pieces.config.track.to)
    evaluator = Evaluator(pieces, split)
    chosen = chosen_tasks(pieces.config, tasks)
    read = {name: downstream.load(name, task) for name, task in chosen.items()}
    step, params = restored(workdir, pieces, which)
    by_batch: list = []
    held = evaluator(params, by_batch=by_batch)
    replicates = {"loss": loss_replicates(pieces.objective, by_batch)}
    found = {"split": split, "checkpoint": which, "step": step, "changed": changed}
    found |= held._asdict()
    found["loss_interval"] = interval(replicates["loss"])
    found["others"] = under_others(pieces, params, split, others, skip=for_report)
    if for_report:
        found["train"] = evaluator.on("train")(params, limit=len(by_batch))._asdict()
        sources = [one.name for one in pieces.store.sets(split) if one.documents]
        found["by_source"] = (
            {name: evaluator.on(split, name)(params).loss for name in sources}
            if len(sources) > 1
            else {}
        )
    for line in describe(pieces, found):
        say(line)
    found["samples"] = examples(pieces, params, split)
    for line in shown_examples(found["samples"]):
        say(line)
    found["tasks"] = {}
    model = model_of(pieces, params)
    settings = DownstreamSettings(**pieces.config.downstream)
    if chosen:
        say("\ndownstream tasks, on their test rows (95 % interval; chance)")
    for name, task in chosen.items():
        measured = downstream.measure(task, read[name], model, settings)
        if not measured:
            say(f"  {name}: {pieces.objective.name} gives no likelihood of a sentence")
        for method, (result, drawn) in measured.items():
            found["tasks"][f"{name}/{method}"] = result
            replicates[f"{name}/{method}"] = drawn
            for line in task_lines(f"{name}/{method}", result):
                say(line)
    if is_first():
        with access(f"write the workdir {workdir}"):
            write(workdir / "evaluation.json", json.dumps(finite(found), indent=2) + "\n")
            drawn, boards = ((workdir / name).exists() for name in ("loss.png", "tensorboard"))
        if drawn:
            board = f"   (tensorboard --logdir {workdir}/tensorboard)" if boards else ""
            say(f"\ncurves     {workdir}/loss.png{board}")
        tell_trackers(workdir, pieces.config, found, held)
    wait_for_all("evaluation")
    rounded = {name: [round(x, 6) for x in drawn.tolist()] for name, drawn in replicates.items()}
    return found | {"replicates": rounded}


def asked(
    stored: dict, overrides: dict[str, str], tasks: Sequence[str]
) -> tuple[ConfigDict, dict[str, Any]]:
    """The config to measure with, and what in it makes the numbers others than those of the run."""
    raw = copy.deepcopy(stored)
    for key, text in overrides.items():
        override(raw, key, text)
        if key.startswith("tasks.") and not tasks:
            raise UserError(
                f"config.{key} is set, and no task is to be measured: add "
                f"--tasks={key.split('.')[1]}"
            )
    config = complete(raw)
    before, now = (flatten(each.to_dict()) for each in (complete(stored), config))
    changed = {key: now[key] for key in overrides if key in now and before.get(key) != now[key]}
    for key, value in changed.items():
        if key.startswith(("model.", "tokenizer.")) and not is_free(key):
            raise UserError(
                f"the run was trained with config.{key} = {before.get(key)!r}, and now it is "
                f"{value!r}: leave it out, since that is another model"
            )
    return config, {k: v for k, v in changed.items() if k.startswith(("objective.", "data."))}


def tell_trackers(workdir: AnyPath, config: ConfigDict, found: dict, held: HeldOut) -> None:
    """Tells the trackers what was measured of a run that has ended (else it is telling them)."""
    with access(f"read the workdir {workdir}"):
        ended = (workdir / "summary.json").exists()
    if not ended:
        return
    tasks = {f"task/{name}": result["mean"] for name, result in found["tasks"].items()}
    values = finite(held.numbers() | tasks)
    numbers = {f"{found['split']}_{name}": x for name, x in values.items() if x is not None}
    for tracker in open_trackers(workdir, workdir, config.to_dict(), **config.track):
        tracker.summary(found["step"], numbers)
        tracker.close(done=True)


def chosen_tasks(config: ConfigDict, names: Sequence[str]) -> dict:
    """Tasks of the config by name.

    Raises:
        UserError: it has none of that name.
    """
    known = downstream_tasks(config)
    if "all" in names:
        return known
    for name in names:
        if name not in known:
            raise UserError(
                f"the config has no task {name!r}{did_you_mean(name, known)}; it has "
                f"{', '.join(known) or 'none'}: add --config.tasks.{name}.name=… and its keys"
            )
    return {name: known[name] for name in names}


def under_others(
    pieces: Pieces, params: dict, split: str, names: Sequence[str], *, skip: bool
) -> dict[str, dict]:
    """Held-out numbers of the same parameters under other objectives, with their defaults.

    Args:
        pieces: of the run.
        params: of its checkpoint.
        split: "test" or "validation".
        names: of objectives; "all" stands for those that the backbone can compute. The run's own
            is left out.
        skip: leave out what cannot be computed.

    Raises:
        UserError: an objective that is named cannot be computed.
    """
    found = {}
    for name in OBJECTIVES if "all" in names else dict.fromkeys(names):
        if name == pieces.objective.name:
            continue
        raw = pieces.config.to_dict() | {"objective": {"name": name}}
        raw["data"]["view"] = "auto"
        try:
            other = assemble(complete(raw))
            missing = other.abstract.params.keys() - params.keys()
            if missing:
                raise UserError(f"{name} needs {', '.join(sorted(missing))} beside the backbone")
        except UserError as error:
            if skip or "all" in names:
                continue
            raise UserError(
                f"the loss under {name} cannot be measured on this run: {error}"
            ) from None
        part = {key: params[key] for key in other.abstract.params}
        found[name] = Evaluator(other, split)(part)._asdict()
    return found


def task_lines(name: str, result: dict) -> list[str]:
    """A downstream result as lines to read."""
    chance = "" if result["chance"] is None else f"; chance {result['chance']:.3f}"
    more = "".join(f", {key} {value:.3f}" for key, value in result["more"].items())
    lines = [
        f"  {name:<24} {result['metric']} {result['mean']:.3f} "
        f"({result['low']:.3f} to {result['high']:.3f}{chance}){more}"
    ]
    if result["shuffled"] and result["shuffled"]["low"] > result["shuffled"]["chance"]:
        lines.append(
            f"    warning: with shuffled labels the probe has {result['shuffled']['mean']:.3f}, "
            f"and chance is {result['shuffled']['chance']:.3f}: something leaks"
        )
    lines += [f"    {group:<40} {value:.3f}" for group, value in result["groups"].items()]
    return lines


def describe(pieces: Pieces, found: dict) -> list[str]:
    """The numbers of an evaluation as lines to read."""
    per_byte = found["bits_per_byte"], found["bits_per_hidden_byte"]
    token_loss = found["token_loss"]
    tokens = "" if token_loss is None else f", {found['predicted']:,} predicted tokens"
    lines = [
        "",
        f"held-out {found['split']} documents, {found['checkpoint']} checkpoint (step "
        f"{found['step']}){tokens}",
    ]
    if found["changed"]:
        values = ", ".join(f"config.{key} = {value}" for key, value in found["changed"].items())
        lines.append(f"  NOT as it was trained: {values}")
    if found["loss"] != token_loss:
        lines.append(f"  loss            {found['loss']:.4f} nats")
    if token_loss is not None:
        below = found["unigram_loss"] - token_loss
        lines += [
            f"  {'loss' if found['loss'] == token_loss else 'of the tokens':<15} {token_loss:.4f} "
            f"nats per token (perplexity {math.exp(min(token_loss, 700)):.1f})",
            f"  unigram model   {found['unigram_loss']:.4f} nats per token on the same targets; "
            + (f"{below:.4f} above this model" if below > 0 else "this model is NOT better"),
        ]
    if found["accuracy"] is not None:
        lines.append(f"  accuracy        {found['accuracy']:.1%}")
    shown = ("loss", "accuracy", pieces.objective.token_term)
    lines += [
        f"  {k:<15} {v:.4f}" for k, v in found["parts"].items() if k not in shown and v is not None
    ]
    exact = pieces.store.tokenizer.keeps_text
    about = "" if exact else " (about: the tokenizer does not keep text as it is)"
    if per_byte[0] is not None:
        lines.append(f"  bits per byte   {per_byte[0]:.4f}{about}")
    elif per_byte[1] is not None:
        lines.append(
            f"  bits per byte   {per_byte[1]:.4f} of the hidden text, given the visible text "
            f"(not a likelihood of the whole){about}"
        )
    lines += [f"  under {name:<9} {one['loss']:.4f} nats" for name, one in found["others"].items()]
    return lines


def examples(pieces: Pieces, params: dict, split: str, count: int = 5) -> list[Sample]:
    """A few predictions on held-out sentences."""
    tokenizer = pieces.store.tokenizer
    objectives = [pieces.objective, *pieces.objective.parts()]
    objective = next((one for one in objectives if one.samples), None)
    if objective is None:
        return []
    tokens = np.concatenate(
        [s.read(0, min(s.tokens_total, 50_000)) for s in pieces.store.sets(split)]
    )
    shared = {"count": count, "length": pieces.config.data.length, "seed": pieces.config.seed}
    if objective.samples == "gaps":
        return [
            Sample(
                given=gap.text,
                made=", ".join(f"{word!r} {p:.0%}" for word, p in gap.candidates),
                truth=gap.truth,
            )
            for gap in fill_gaps(objective, params, tokenizer, tokens, **shared)
        ]
    return [
        Sample(given=given.strip(), made=added, truth="")
        for given, added in continue_text(objective, params, tokenizer, tokens, **shared)
    ]


def shown_examples(samples: list[Sample]) -> list[str]:
    """Predictions as lines to read."""
    if not samples:
        return []
    if not samples[0]["truth"]:
        lines = [["", f"  {one['given']!r} →", f"    {one['made']!r}"] for one in samples]
        return ["\nsentences continued:", *sum(lines, [])]
    lines = [
        ["", f"  {one['given']}", f"    {one['made']}   (was {one['truth']!r})"] for one in samples
    ]
    return ["\nhidden words filled in:", *sum(lines, [])]
