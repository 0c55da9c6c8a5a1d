"""What fits into the gaps of a text by a model that writes spans: several tokens for each gap."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.data.tokenizer_base import AnyTokenizer
from jaxpretrain.errors import UserError
from jaxpretrain.evaluation.scoring import MASK
from jaxpretrain.objectives.span_corruption import Denoiser
from jaxpretrain.types import Array, Source

SPAN = 8  # tokens written for a gap, at most


class Span(NamedTuple):
    """What fits into a gap.

    Attributes:
        text: the likeliest token after token, until the model begins the next gap or ends.
        first: the likeliest first tokens with their probabilities, best first.
    """

    text: str
    first: list[tuple[str, float]]


def spans(
    objective: Denoiser,
    params: dict,
    tokenizer: AnyTokenizer,
    text: str,
    *,
    length: int,
    top: int = 5,
) -> list[Span]:
    """Fills each `MASK` of a text, those before it being filled already.

    The source is the text with sentinels in its gaps, with UL2's piece of regular denoising before
    it where it was trained so; the target begins each gap with its sentinel.

    Raises:
        UserError: more gaps than the tokenizer has sentinels, or a longer text than the model was
            trained on.
    """
    vocab, count = tokenizer.vocab, text.count(MASK)
    if count > len(vocab.sentinels):
        raise UserError(f"the text has {count} gaps, and the tokenizer {len(vocab.sentinels)} "
                        "sentinels to stand for them: leave fewer")  # fmt: skip
    sentinels = list(vocab.sentinels[:count])
    mode = [vocab.mode_r] if objective.has_modes else []
    source = np.array([*mode, *tokenizer.encode_gaps(text, MASK, sentinels), vocab.eos], np.int32)
    if len(source) > length + 2:
        raise UserError(
            f"the text has {len(source)} tokens, and the model was trained on rows of {length}: "
            "shorten it"
        )
    room, told, found = count * (SPAN + 1), [], []
    ends = {*vocab.sentinels, vocab.eos}
    for sentinel in sentinels:
        told.append(sentinel)
        written: list[int] = []
        first: list[tuple[str, float]] = []
        while len(written) < SPAN:
            p = np.asarray(_after(objective, params, source, told, room))
            if not first:
                best = np.argsort(-p, kind="stable")[:top]
                words = tokenizer.words(best)
                first = [(word, float(p[i])) for word, i in zip(words, best, strict=True)]
            if (likeliest := int(p.argmax())) in ends:
                break
            written.append(likeliest)
            told.append(likeliest)
        found.append(Span(tokenizer.decode(written).strip(), first))
    return found


def _after(
    objective: Denoiser, params: dict, source: np.ndarray, told: list[int], room: int
) -> Array:
    """Of every token the probability to be the next of a target, float32 ``[vocab]``."""
    pad = objective.vocab.pad
    if objective.backbone.config.decoder_layers:
        row, place, prefix = [pad, *told], len(told), None
        ones = np.ones_like(source)[None]
        read = Source(source[None], ones, np.arange(len(source), dtype=np.int32)[None])
        size = room + 1
    else:
        row, place, read = [*source, *told], len(source) + len(told) - 1, None
        prefix, size = np.array([len(source)], np.int32), len(source) + room
    inputs = np.full((1, size), pad, np.int32)
    inputs[0, : len(row)] = row
    segments = (np.arange(size) < len(row)).astype(np.int32)[None]
    return _next(objective, params, inputs, segments, np.int32(place), prefix, read)


@jax.jit(static_argnums=0)
def _next(
    objective: Denoiser,
    params: dict,
    inputs: Array,
    segments: Array,
    place: Array,
    prefix: Array | None,
    source: Source | None,
) -> Array:
    positions = jnp.arange(inputs.shape[1], dtype=jnp.int32)[None]
    hidden = objective.backbone.encode(
        params,
        inputs,
        segments,
        positions,
        prefix,
        visibility=objective.visibility,
        source=source,
    )
    return jax.nn.softmax(objective.backbone.logits(params, hidden[0, place]))
