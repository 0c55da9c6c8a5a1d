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
from jaxpretrain.objectives.rtd import RTD
from jaxpretrain.types import Array

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
        if not part or not text.strip():
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


class Rows(NamedTuple):
    """Rows padded to the longest: int32 ``[rows, tokens]`` each."""

    inputs: Array
    segments: Array
    types: Array


def padded(rows: Sequence[Row], pad: int) -> Rows:
    """Rows of several lengths as arrays."""
    longest = max(len(row.ids) for row in rows)
    inputs = np.full((len(rows), longest), pad, np.int32)
    segments, types = np.zeros_like(inputs), np.zeros_like(inputs)
    for number, row in enumerate(rows):
        inputs[number, : len(row.ids)] = row.ids
        segments[number, : len(row.ids)] = 1
        types[number, : len(row.types)] = row.types
    return Rows(inputs, segments, types)


def stream(objective: Objective, params: dict, rows: Rows) -> Array:
    """The stream over rows, ``[rows, tokens, width]``."""
    positions = jnp.broadcast_to(jnp.arange(rows.inputs.shape[1]), rows.inputs.shape)
    return objective.backbone.encode(
        params,
        rows.inputs,
        rows.segments,
        positions,
        visibility=objective.visibility,
        types=rows.types if objective.backbone.config.token_types else None,
    )


@jax.jit(static_argnums=0)
def _probabilities(objective: Objective, params: dict, rows: Rows) -> Array:
    """Of every token at each place of the first row, ``[tokens, vocab]``."""
    hidden = stream(objective, params, rows)[0]
    return jax.nn.softmax(objective.backbone.logits(params, hidden))


@jax.jit(static_argnums=0)
def _nats(
    objective: Objective, params: dict, rows: Rows, row: Array, place: Array, token: Array
) -> Array:
    """What tokens cost at places of rows, float32 ``[tokens]``."""
    hidden = stream(objective, params, rows)[row, place]
    logs = jax.nn.log_softmax(objective.backbone.logits(params, hidden).astype(jnp.float32))
    return -jnp.take_along_axis(logs, token[:, None], axis=1)[:, 0]


@jax.jit(static_argnums=0)
def _first_class(objective: NSP, params: dict, rows: Rows) -> Array:
    """The probability that a pair is of the first class."""
    hidden = stream(objective, params, rows)
    head = objective.heads()["pair_head"].module(params["pair_head"])
    return jax.nn.softmax(head(hidden[:, 0]).astype(jnp.float32))[0, 0]


@jax.jit(static_argnums=0)
def _cosine(objective: Contrastive, params: dict, rows: Rows) -> Array:
    """Of the pooled vectors of two rows."""
    hidden = stream(objective, params, rows)
    a, b = pool(hidden, rows.segments, objective.pooling).astype(jnp.float32)
    return jnp.dot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))


@jax.jit(static_argnums=0)
def _replaced(objective: RTD, params: dict, rows: Rows) -> Array:
    """The probability that each token of the first row is not the original, ``[tokens]``."""
    head = objective.heads()["discriminator_head"].module(params["discriminator_head"])
    return jax.nn.sigmoid(head(stream(objective, params, rows)).astype(jnp.float32))[0]


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
    rows = padded([row], tokenizer.vocab.pad)
    whole = np.asarray(_probabilities(objective, params, rows))
    probabilities = whole[row.ids == tokenizer.vocab.mask]
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
    read, told = Row(row.ids[:-1], row.types[:-1]), row.ids[1:]
    rows, places = padded([read], tokenizer.vocab.pad), np.arange(len(told))
    nats = _nats(objective, params, rows, np.zeros_like(places), places, told)
    return _tokens(tokenizer, told, nats)


def masked_tokens(
    objective: Objective, params: dict, tokenizer: AnyTokenizer, text: str, *, length: int
) -> list[Token]:
    """Each token of a text, given all others: hidden one at a time (the pseudo-log-likelihood of
    Salazar et al. 2020, arXiv:1910.14659)."""
    row = row_of(objective, tokenizer, text, length=length)
    places = np.arange(1, len(row.ids) - 1)
    hidden_ids = np.repeat(row.ids[None], len(places), axis=0)
    hidden_ids[np.arange(len(places)), places] = tokenizer.vocab.mask
    rows = padded([Row(ids, row.types) for ids in hidden_ids], tokenizer.vocab.pad)
    nats = _nats(objective, params, rows, np.arange(len(places)), places, row.ids[places])
    return _tokens(tokenizer, row.ids[places], nats)


def replaced_tokens(
    objective: RTD, params: dict, tokenizer: AnyTokenizer, text: str, *, length: int
) -> list[tuple[str, float]]:
    """Each token of a text with the probability, by ELECTRA's discriminator (Clark et al. 2020,
    arXiv:2003.10555), that another one stood there.

    Raises:
        UserError: see `row_of`.
    """
    row = row_of(objective, tokenizer, text, length=length)
    p = np.asarray(_replaced(objective, params, padded([row], tokenizer.vocab.pad)))[1:-1]
    return list(zip(tokenizer.pieces(row.ids[1:-1]), p.tolist(), strict=True))


def pair_probability(
    objective: NSP, params: dict, tokenizer: AnyTokenizer, first: str, second: str, *, length: int
) -> float:
    """The probability that the second text follows the first (`nsp`), or that the two are in the
    order of the text (`sop`)."""
    row = row_of(objective, tokenizer, first, second, length=length)
    return float(_first_class(objective, params, padded([row], tokenizer.vocab.pad)))


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
    return float(_cosine(objective, params, padded(rows, tokenizer.vocab.pad)))


def _tokens(tokenizer: AnyTokenizer, ids: np.ndarray, nats) -> list[Token]:
    return [
        Token(piece, float(value))
        for piece, value in zip(tokenizer.pieces(ids), np.asarray(nats), strict=True)
    ]
