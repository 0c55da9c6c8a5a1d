"""The ``evaluate`` command: a finished run, measured on held-out documents and shown."""

import json
import math

import numpy as np

from jaxpretrain.assemble import Evaluator, Pieces, assemble, identity
from jaxpretrain.checkpoint import Checkpoints, Damaged
from jaxpretrain.config import complete, override
from jaxpretrain.errors import UserError
from jaxpretrain.evaluation.minimal_pairs import Pair, accuracies, read, sentence_nats
from jaxpretrain.evaluation.samples import continue_text, fill_gaps
from jaxpretrain.processes import is_first, say, wait_for_all
from jaxpretrain.storage import AnyPath, access, write
from jaxpretrain.workdir import check_identity, open_run


def evaluate(
    workdir: AnyPath,
    *,
    split: str = "test",
    which: str = "best",
    overrides: dict[str, str],
    minimal_pairs: str = "",
    limit: int = 0,
) -> dict:
    """Measures a run's checkpoint on a held-out split and prints what a person wants to see.

    Args:
        workdir: folder of the run.
        split: "test" or "validation".
        which: the "best" checkpoint by validation loss, or the "latest".
        overrides: dotted keys and text on top of the run's stored config.
        minimal_pairs: a file of them, or a folder; see `evaluation.minimal_pairs`.
        limit: pairs of each file; 0 for all.

    Returns:
        What ``evaluation.json`` in the workdir then holds.

    Raises:
        UserError: the folder holds no run, or no checkpoint yet.
    """
    raw = open_run(workdir)
    for key, text in overrides.items():
        override(raw, key, text)
    pieces = assemble(complete(raw))
    check_identity(workdir, identity(pieces))
    evaluator = Evaluator(pieces, split)
    pairs = read(minimal_pairs, limit) if minimal_pairs else []
    step, params = restored(workdir, pieces, which)
    found = {"split": split, "checkpoint": which, "step": step, **evaluator(params)._asdict()}
    lines = [*describe(pieces, found), *examples(pieces, params, split)]
    if pairs:
        found["minimal_pairs"], more = judged(pieces, params, pairs)
        lines += more
    for line in lines:
        say(line)
    if is_first():
        with access(f"write the workdir {workdir}"):
            write(workdir / "evaluation.json", json.dumps(found, indent=2) + "\n")
            drawn = (workdir / "loss.png").exists()
        if drawn:
            say(f"\ncurves     {workdir}/loss.png   (tensorboard --logdir {workdir}/tensorboard)")
    wait_for_all("evaluation")
    return found


def restored(workdir: AnyPath, pieces: Pieces, which: str) -> tuple[int, dict]:
    """Step and parameters of a run's "best" or "latest" checkpoint.

    Raises:
        UserError: there is none, or it is damaged.
    """
    with access(f"read the workdir {workdir}"):
        saved = (workdir / "checkpoints").is_dir()
    if not saved:
        raise UserError(f"{workdir} holds no checkpoint yet: train first")
    checkpoints = Checkpoints(workdir / "checkpoints", pieces.placement, read_only=True)
    step = checkpoints.best() if which == "best" else checkpoints.latest()
    if step is None:
        raise UserError(f"{workdir} holds no checkpoint yet: train first")
    try:
        params = checkpoints.restore_params(step, pieces.abstract.params)
    except Damaged as error:
        raise UserError(f"{error}: choose another with --checkpoint") from None
    checkpoints.close()
    return step, params


def judged(pieces: Pieces, params: dict, pairs: list[Pair]) -> tuple[dict, list[str]]:
    """Accuracy on minimal pairs by phenomenon, and the same as lines to read."""
    objectives = [task.objective for task in getattr(pieces.objective, "tasks", ())]
    objectives = objectives or [pieces.objective]
    objective = next((one for one in objectives if one.samples), objectives[0])
    texts = [pair.good for pair in pairs] + [pair.bad for pair in pairs]
    nats = sentence_nats(
        objective, params, pieces.store.tokenizer, texts, length=pieces.config.data.length
    )
    found = accuracies(pairs, nats[: len(pairs)], nats[len(pairs) :])
    width = max(11, *map(len, found))
    lines = ["", f"{'minimal pairs':<{width + 2}}   pairs  accuracy  per byte"]
    lines += [
        f"  {name:<{width}}  {one.pairs:6,}  {one.total:8.1%}  {one.per_byte:8.1%}"
        for name, one in found.items()
    ]
    return {name: one._asdict() for name, one in found.items()}, lines


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
    if per_byte[0] is not None:
        lines.append(f"  bits per byte   {per_byte[0]:.4f}")
    elif per_byte[1] is not None:
        lines.append(
            f"  bits per byte   {per_byte[1]:.4f} of the hidden text, given the visible text "
            "(not a likelihood of the whole)"
        )
    return lines


def examples(pieces: Pieces, params: dict, split: str, count: int = 5) -> list[str]:
    """A few predictions on held-out sentences as lines to read."""
    tokenizer = pieces.store.tokenizer
    parts = [pieces.objective, *(task.objective for task in getattr(pieces.objective, "tasks", ()))]
    objective = next((part for part in parts if part.samples), None)
    if objective is None:
        return []
    tokens = np.concatenate(
        [s.read(0, min(s.tokens_total, 50_000)) for s in pieces.store.sets(split)]
    )
    shared = {"count": count, "length": pieces.config.data.length, "seed": pieces.config.seed}
    lines = []
    if objective.samples == "gaps":
        for gap in fill_gaps(objective, params, tokenizer, tokens, **shared):
            guesses = ", ".join(f"{word!r} {p:.0%}" for word, p in gap.candidates)
            lines += ["", f"  {gap.text}", f"    {guesses}   (was {gap.truth!r})"]
        return ["\nhidden words filled in:"] + lines if lines else []
    for given, added in continue_text(objective, params, tokenizer, tokens, **shared):
        lines += ["", f"  {given.strip()!r} →", f"    {added!r}"]
    return ["\nsentences continued:"] + lines if lines else []
