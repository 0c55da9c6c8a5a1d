"""What a trained model says of texts that a person types: gaps, tokens, pairs, similarity."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.data.tokenizer_base import AnyTokenizer
from jaxpretrain.errors import UserError
from jaxpretrain.objectives.base import Objective
from jaxpretrain.objectives.contrastive import Contrastive, pool
from jaxpretrain.objectives.nsp import NSP

MASK = "[MASK]"


class Token(NamedTuple):
    """A token of a text and what it cost the model.

    Attributes:
        piece: as the tokenizer writes it.
        nats: its negative log-probability, given what the model sees.
    """

    piece: str
    nats: float


class Row(NamedTuple):
    """Tokens as an objective reads them.

    Attributes:
        ids: int32 ``[tokens]``, enclosed.
        types: int32 ``[tokens]``, 1 in the second part of a pair.
    """

    ids: np.ndarray
    types: np.ndarray


def enclosing(objective: Objective) -> tuple[str, str]:
    """Names of the special pieces around a text: those of documents, or those of pairs."""
    return ("bos", "eos") if "packed" in objective.views else ("cls", "sep")


def row_of(objective: Objective, tokenizer: AnyTokenizer, *texts: str, length: int) -> Row:
    """One text or two as the objective encloses them.

    Raises:
        UserError: no text, or more of it than the model reads.
    """
    vocab = tokenizer.vocab
    first, last = (getattr(vocab, name) for name in enclosing(objective))
    ids, types = [first], [0]
    for number, text in enumerate(texts):
        part = tokenizer.encode_gaps(text, MASK)
        if not part:
            raise UserError("there is no text to score")
        ids += [*part, last]
        types += [number] * (len(part) + 1)
    room = length + len(texts) + 1
    if len(ids) > room:
        raise UserError(
            f"the text has {len(ids)} tokens, and the model was trained on rows of {length}: "
            "shorten it"
        )
    return Row(np.array(ids, np.int32), np.array(types, np.int32))


def hidden_of(objective: Objective, params: dict, rows: Sequence[Row]) -> tuple:
    """The stream over rows that are padded to the longest, and the segments."""
    longest = max(len(row.ids) for row in rows)
    inputs = np.full((len(rows), longest), objective.vocab.pad, np.int32)
    segments, types = np.zeros_like(inputs), np.zeros_like(inputs)
    for number, row in enumerate(rows):
        inputs[number, : len(row.ids)] = row.ids
        segments[number, : len(row.ids)] = 1
        types[number, : len(row.types)] = row.types
    positions = np.broadcast_to(np.arange(longest, dtype=np.int32), inputs.shape)
    hidden = objective.backbone.encode(
        params,
        inputs,
        segments,
        positions,
        visibility=objective.visibility,
        types=types if objective.backbone.config.token_types else None,
    )
    return hidden, segments


def gaps(
    objective: Objective,
    params: dict,
    tokenizer: AnyTokenizer,
    text: str,
    *,
    length: int,
    top: int = 5,
) -> list[list[tuple[str, float]]]:
    """The likeliest tokens for each `MASK` of a text, with their probabilities, best first.

    Raises:
        UserError: see `row_of`.
    """
    row = row_of(objective, tokenizer, text, length=length)

    @jax.jit
    def scores(params):
        hidden, _ = hidden_of(objective, params, [row])
        return jax.nn.softmax(objective.backbone.logits(params, hidden)[0])

    probabilities = np.asarray(scores(params))[row.ids == tokenizer.vocab.mask]
    found = []
    for p in probabilities:
        best = np.argsort(-p, kind="stable")[:top]
        words = tokenizer.words(best)
        found.append([(word, float(p[i])) for word, i in zip(words, best, strict=True)])
    return found


def causal_tokens(
    objective: Objective, params: dict, tokenizer: AnyTokenizer, text: str, *, length: int
) -> list[Token]:
    """Each token of a text, and its end, given those before it."""
    row = row_of(objective, tokenizer, text, length=length)

    @jax.jit
    def nats(params):
        hidden, _ = hidden_of(objective, params, [Row(row.ids[:-1], row.types[:-1])])
        logs = jax.nn.log_softmax(objective.backbone.logits(params, hidden)[0].astype(jnp.float32))
        return -jnp.take_along_axis(logs, row.ids[1:, None], axis=1)[:, 0]

    return _tokens(tokenizer, row.ids[1:], nats(params))


def masked_tokens(
    objective: Objective, params: dict, tokenizer: AnyTokenizer, text: str, *, length: int
) -> list[Token]:
    """Each token of a text, given all others: hidden one at a time (the pseudo-log-likelihood of
    Salazar et al. 2020, arXiv:1910.14659)."""
    row = row_of(objective, tokenizer, text, length=length)
    places = np.arange(1, len(row.ids) - 1)
    hidden_ids = np.repeat(row.ids[None], len(places), axis=0)
    hidden_ids[np.arange(len(places)), places] = tokenizer.vocab.mask

    @jax.jit
    def nats(params):
        hidden, _ = hidden_of(objective, params, [Row(ids, row.types) for ids in hidden_ids])
        at = hidden[jnp.arange(len(places)), places]
        logs = jax.nn.log_softmax(objective.backbone.logits(params, at).astype(jnp.float32))
        return -jnp.take_along_axis(logs, row.ids[places, None], axis=1)[:, 0]

    return _tokens(tokenizer, row.ids[places], nats(params))


def pair_probability(
    objective: NSP, params: dict, tokenizer: AnyTokenizer, first: str, second: str, *, length: int
) -> float:
    """The probability that the second text follows the first (`nsp`), or that the two are in the
    order of the text (`sop`)."""
    row = row_of(objective, tokenizer, first, second, length=length)

    @jax.jit
    def scores(params):
        hidden, _ = hidden_of(objective, params, [row])
        head = objective.heads()["pair_head"].module(params["pair_head"])
        return jax.nn.softmax(head(hidden[:, 0]).astype(jnp.float32))[0, 0]

    return float(scores(params))


def similarity(
    objective: Contrastive,
    params: dict,
    tokenizer: AnyTokenizer,
    first: str,
    second: str,
    *,
    length: int,
) -> float:
    """The cosine of the pooled vectors of two texts, as they are used downstream: unprojected."""
    rows = [row_of(objective, tokenizer, text, length=length) for text in (first, second)]

    @jax.jit
    def cosine(params):
        hidden, segments = hidden_of(objective, params, rows)
        a, b = pool(hidden, segments, objective.pooling).astype(jnp.float32)
        return jnp.dot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))

    return float(cosine(params))


def _tokens(tokenizer: AnyTokenizer, ids: np.ndarray, nats) -> list[Token]:
    return [
        Token(piece, float(value))
        for piece, value in zip(tokenizer.pieces(ids), np.asarray(nats), strict=True)
    ]
