"""The ``score`` command: what a run's model says of a text, or of two."""

import math
from collections.abc import Callable

from jaxpretrain.errors import UserError
from jaxpretrain.evaluation import scoring, scoring_spans
from jaxpretrain.interop.origin import Origin
from jaxpretrain.objectives.base import Objective
from jaxpretrain.objectives.contrastive import Contrastive
from jaxpretrain.objectives.nsp import NSP
from jaxpretrain.objectives.rtd import RTD
from jaxpretrain.objectives.span_corruption import Denoiser
from jaxpretrain.reopen import opened
from jaxpretrain.storage import AnyPath


def score(workdir: AnyPath, texts: list[str], *, which: str = "best", top: int = 5) -> list[str]:
    """Scores one text or two with a run's checkpoint and prints it; needs no token store.

    One text with ``[MASK]`` has its gaps filled in, by tokens or by spans, as the objective has it;
    one without is scored token by token (by ELECTRA's discriminator for tokens that do not belong
    there). Two texts are a pair (next sentence, sentence order) or compared (contrastive
    objectives).

    Args:
        workdir: folder of the run.
        texts: one or two.
        which: the "best" checkpoint by validation loss, or the "latest".
        top: how many candidates for a gap.

    Returns:
        The lines that were printed.

    Raises:
        UserError: the folder holds no run, or its objective has nothing to say of such texts.
    """
    if not 1 <= len(texts) <= 2:
        raise UserError(f"score takes one text or two, not {len(texts)}: put quotes around each")
    run = opened(workdir, which)
    objective, say = chosen(run.objective.parts(), texts)
    needed = NEEDED.get(say, "head")
    origin = Origin.load(workdir)
    if run.step == 0 and origin and needed in origin.untrained:
        raise UserError(
            f"{workdir} is as it was imported, without {needed}, which would answer at random: "
            "train first"
        )
    length = run.config.data.length
    lines = say(objective, run.params, run.tokenizer, *texts, length=length, top=top)
    for line in lines:
        print(line)
    return lines


def chosen(objectives: list[Objective], texts: list[str]) -> tuple[Objective, Callable]:
    """The objective that has something to say of the texts, and the function that says it.

    Raises:
        UserError: none has.
    """
    masked = scoring.MASK in texts[0]
    for one in objectives:
        if len(texts) == 2:
            if isinstance(one, NSP):
                return one, _pair
            if isinstance(one, Contrastive):
                return one, _similarity
        elif isinstance(one, RTD):
            if not masked:
                return one, _replaced
        elif isinstance(one, Denoiser):
            if masked:
                return one, _spans
        elif one.samples == "gaps":
            return one, _gaps if masked else _masked
        elif one.samples == "continuations" and one.visibility == "causal" and not masked:
            return one, _causal
    names = ", ".join(one.name for one in objectives)
    what = "two texts" if len(texts) == 2 else "a text"
    what += f" with {scoring.MASK}" if masked and len(texts) == 1 else ""
    raise UserError(
        f"a run of {names} has nothing to say of {what}: masked objectives take one text (with "
        f"{scoring.MASK} for gaps), those of spans one with {scoring.MASK}, causal ones and "
        "rtd a text without, pair and contrastive ones two"
    )


def _gaps(*asked, length: int, top: int) -> list[str]:
    lines = []
    found = scoring.gaps(*asked, length=length, top=top)
    for number, candidates in enumerate(found, start=1):
        lines.append(f"gap {number}" if len(found) > 1 else "gap")
        lines += [f"  {p:6.1%}  {piece}" for piece, p in candidates]
    return lines


def _spans(*asked, length: int, top: int) -> list[str]:
    lines = []
    found = scoring_spans.spans(*asked, length=length, top=top)
    for number, span in enumerate(found, start=1):
        lines.append(f"gap {number}: {span.text!r}, which begins with one of")
        lines += [f"  {p:6.1%}  {piece}" for piece, p in span.first]
    return lines


def _causal(*asked, length: int, top: int) -> list[str]:
    return _costs(scoring.causal_tokens(*asked, length=length), "given those before it")


def _masked(*asked, length: int, top: int) -> list[str]:
    return _costs(scoring.masked_tokens(*asked, length=length), "given all others")


def _costs(tokens: list[scoring.Token], given: str) -> list[str]:
    width = max(len(token.piece) for token in tokens)
    mean = sum(token.nats for token in tokens) / len(tokens)
    return [
        f"nats of each token, {given}",
        *(f"  {token.piece:<{width}}  {token.nats:7.4f}" for token in tokens),
        f"mean {mean:.4f} nats over {len(tokens)} tokens "
        f"(perplexity {math.exp(min(mean, 700)):.1f})",
    ]


def _replaced(*asked, length: int, top: int) -> list[str]:
    found = scoring.replaced_tokens(*asked, length=length)
    width = max(len(piece) for piece, _ in found)
    return [
        "probability that another token stood there",
        *(f"  {piece:<{width}}  {p:6.1%}" for piece, p in found),
    ]


def _pair(objective: Objective, *asked, length: int, top: int) -> list[str]:
    p = scoring.pair_probability(objective, *asked, length=length)
    ordered = objective.name in ("sop", "albert")
    return [f"{p:.1%}  {'in this order' if ordered else 'the second follows the first'}"]


def _similarity(*asked, length: int, top: int) -> list[str]:
    return [f"{scoring.similarity(*asked, length=length):.4f}  cosine similarity"]


# The head that an answer is of, where it does not predict tokens.
NEEDED = {_pair: "pair_head", _similarity: "", _replaced: "discriminator_head"}
