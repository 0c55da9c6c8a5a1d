"""Examples to look at: gaps filled in by a masked model, sentences continued by a causal one."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.data.tokenizer_base import AnyTokenizer
from jaxpretrain.objectives.base import Objective

_BYTE = re.compile("<0x[0-9A-F]{2}>")


class Gap(NamedTuple):
    """A sentence with one word hidden.

    Attributes:
        text: the sentence, ``[MASK]`` in the place of the word.
        truth: the word.
        candidates: the likeliest words with their probabilities, best first.
    """

    text: str
    truth: str
    candidates: list[tuple[str, float]]


def sentences(tokens: np.ndarray, vocab, *, shortest: int, longest: int) -> list[np.ndarray]:
    """Cuts a run of tokens into its sentences, as arrays of token ids.

    A line break inside a paragraph (the one ordinary piece that counts no bytes) does not end one.

    Args:
        tokens: int ``[n]``, ordinary and special pieces.
        vocab: the vocabulary.
        shortest: fewest tokens of a sentence to keep.
        longest: most tokens of a sentence to keep.
    """
    special = vocab.is_special[tokens]
    line_break = ~special & (vocab.piece_bytes[tokens] == 0)
    ends = special | (vocab.is_sentence_end[tokens] & ~line_break)
    cuts = np.flatnonzero(ends) + 1
    parts = np.split(tokens, cuts)
    parts = [part[~vocab.is_special[part]] for part in parts]
    return [part for part in parts if shortest <= len(part) <= longest]


def fill_gaps(
    objective: Objective,
    params: dict,
    tokenizer: AnyTokenizer,
    tokens: np.ndarray,
    *,
    count: int,
    length: int,
    seed: int = 0,
    top: int = 3,
) -> list[Gap]:
    """Hides a word in each of a few held-out sentences and asks the model for it.

    Args:
        objective: one whose `samples` are "gaps", bound.
        params: the parameters.
        tokenizer: of the store.
        tokens: int ``[n]`` held-out tokens.
        count: how many sentences.
        length: longest row that the model is asked to read.
        seed: which sentences and words.
        top: how many candidates.
    """
    vocab = tokenizer.vocab
    # As the objective's rows are enclosed: those of documents, or those of pairs.
    paired = "packed" not in objective.views
    first, last = (vocab.cls, vocab.sep) if paired else (vocab.bos, vocab.eos)
    is_word = np.array([len(word) >= 3 and word.isalpha() for word in _words(tokenizer)])
    rng = np.random.default_rng(seed)
    found = sentences(tokens, vocab, shortest=10, longest=min(length - 2, 40))
    rows, places = [], []
    for index in rng.permutation(len(found)):
        sentence = found[index]
        # One piece that is a whole word: it begins one, and what follows begins another.
        whole = vocab.is_word_start[sentence] & is_word[sentence]
        whole[:-1] &= vocab.is_word_start[sentence[1:]]
        places_here = np.flatnonzero(whole)
        if len(places_here) and len(rows) < count:
            rows.append(np.concatenate([[first], sentence, [last]]))
            places.append(1 + rng.choice(places_here))
    if not rows:
        return []
    inputs, segments = _pad(rows, length, vocab.pad)
    truths = inputs[np.arange(len(rows)), places]
    inputs[np.arange(len(rows)), places] = vocab.mask
    scores = _logits(objective, params, inputs, segments, np.asarray(places))
    probabilities = np.asarray(jax.nn.softmax(scores, axis=-1))
    gaps = []
    for row, place, truth, p in zip(rows, places, truths, probabilities, strict=True):
        # What stands before and behind the word, cut out of the whole text to keep its spaces.
        whole = tokenizer.decode(row)
        start, end = (len(tokenizer.decode(row[:n])) for n in (place, place + 1))
        best = np.argsort(-p)[:top]
        gaps.append(
            Gap(
                text=" ".join(f"{whole[:start]} [MASK]{whole[end:]}".split()),
                truth=tokenizer.decode([int(truth)]).strip(),
                candidates=[(_shown(tokenizer, i), float(p[i])) for i in best],
            )
        )
    return gaps


def continue_text(
    objective: Objective,
    params: dict,
    tokenizer: AnyTokenizer,
    tokens: np.ndarray,
    *,
    count: int,
    length: int,
    new_tokens: int = 16,
    seed: int = 0,
) -> list[tuple[str, str]]:
    """Continues the first half of a few held-out sentences, the likeliest token each time.

    Arguments are as for `fill_gaps`, for an objective whose `samples` are "continuations".

    Returns:
        Pairs of what was given and what the model added.
    """
    vocab = tokenizer.vocab
    rng = np.random.default_rng(seed)
    found = sentences(tokens, vocab, shortest=10, longest=min(40, length - new_tokens - 1))
    picked = [found[i] for i in rng.permutation(len(found))[:count]]
    if not picked:
        return []
    # A prefix is read both ways and begins with the text; a causal model reads bos before it.
    prefixed = objective.visibility == "prefix"
    first = [] if prefixed else [vocab.bos]
    starts = [np.concatenate([first, row[: len(row) // 2]]).astype(np.int32) for row in picked]
    prefix = np.array([len(start) for start in starts], np.int32) if prefixed else None
    grown = [list(row) for row in starts]
    for _ in range(new_tokens):
        inputs, segments = _pad(grown, length, vocab.pad)
        last = np.array([len(row) - 1 for row in grown])
        scores = _logits(objective, params, inputs, segments, last, prefix)
        best = np.asarray(scores).argmax(-1)
        for row, token in zip(grown, best, strict=True):
            if row[-1] != vocab.eos:
                row.append(int(token))
    return [
        (tokenizer.decode(start.tolist()), tokenizer.decode([int(t) for t in row[len(start) :]]))
        for start, row in zip(starts, grown, strict=True)
    ]


@jax.jit(static_argnums=0)
def _logits(objective, params, inputs, segments, places, prefix=None):
    """Scores at one position of each row, ``[rows, vocab]``."""
    positions = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
    hidden = objective.backbone.encode(
        params, inputs, segments, positions, prefix, visibility=objective.visibility
    )
    return objective.backbone.logits(params, hidden[jnp.arange(len(inputs)), places])


def _pad(rows, length, pad):
    inputs = np.full((len(rows), length), pad, np.int32)
    segments = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        inputs[i, : len(row)], segments[i, : len(row)] = row, 1
    return inputs, segments


def _words(tokenizer: AnyTokenizer) -> list[str]:
    return [tokenizer.decode([i]).strip() for i in range(tokenizer.vocab.size)]


def _shown(tokenizer: AnyTokenizer, piece: int) -> str:
    """A piece as a word; what is no word, such as a newline or spaces, as it is; a byte, which may
    be a newline too, by its name."""
    (name,), text = tokenizer.pieces([piece]), tokenizer.decode([int(piece)])
    return name if _BYTE.fullmatch(name) else text.strip() or text or " "
