"""Extractive question answering: two scores for each position of the context, begin and end.

A context that is too long is read in windows that overlap by half; a window without an answer, and
a question without one, point at the first position (Devlin et al. 2019, arXiv:1810.04805, 4.3).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.data.tasks_rows import Item
from jaxpretrain.data.tokenizer_base import AnyTokenizer
from jaxpretrain.evaluation.finetune import Learner, head_scores
from jaxpretrain.evaluation.reading import Rows, in_batches, padded, room_for_text, stream
from jaxpretrain.evaluation.scoring import enclosing
from jaxpretrain.objectives.base import Objective
from jaxpretrain.settings import DownstreamSettings

LONGEST_ANSWER = 30  # tokens
IMPOSSIBLE = -1e9


class Windows(NamedTuple):
    """Questions with parts of their contexts, as rows.

    Attributes:
        rows: question, then context.
        owners: which question, ``[rows]``.
        begins: for each position the byte of the context at which its token begins, ``[rows,
            length]``; -1 outside the context.
        ends: the byte after it.
        targets: first and last position of the answer, ``[rows, 2]``, 0 where there is none.
    """

    rows: Rows
    owners: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    targets: np.ndarray


def windows(
    objective: Objective, tokenizer: AnyTokenizer, items: Sequence[Item], length: int
) -> Windows:
    """Cuts contexts into windows; the first of several answers is the target.

    Args:
        objective: that the backbone was trained by.
        tokenizer: of the run.
        items: question and context, with answers.
        length: the most tokens of text in a row; a question has at most half of them.
    """
    vocab = tokenizer.vocab
    first, last = (getattr(vocab, name) for name in enclosing(objective))
    room = room_for_text(objective, length, 2)
    made, owners, places, targets = [], [], [], []
    questions = tokenizer.encode_batch([item.texts[0] for item in items])
    contexts = tokenizer.locate([item.texts[1] for item in items])
    for owner, (item, asked, located) in enumerate(zip(items, questions, contexts, strict=True)):
        asked = asked[: room // 2].tolist()
        context, begins, ends = located
        size = room - len(asked)
        before = len(asked) + 2
        for start in range(0, max(len(context) - size // 2, 1), max(size // 2, 1)):
            stop = min(start + size, len(context))
            ids = [first, *asked, last, *context[start:stop].tolist(), last]
            made.append((ids, [0] * before + [1] * (len(ids) - before)))
            owners.append(owner)
            places.append((before, begins[start:stop], ends[start:stop]))
            targets.append(_target(item, begins[start:stop], ends[start:stop], before))
    rows = padded(made, vocab.pad)
    found = np.full((2, *rows.ids.shape), -1)
    for number, (before, low, high) in enumerate(places):
        found[0, number, before : before + len(low)] = low
        found[1, number, before : before + len(high)] = high
    return Windows(rows, np.array(owners), found[0], found[1], np.array(targets, np.int32))


def best_spans(
    scores: np.ndarray, found: Windows, questions: int, *, may_be_none: bool
) -> list[tuple[int, int]]:
    """The bytes of the best stretch of each context; (0, 0) says that there is no answer.

    Args:
        scores: of begin and end, ``[rows, length, 2]``.
        found: the windows.
        questions: how many.
        may_be_none: whether a question can be without an answer.
    """
    best = [(-np.inf, 0, 0)] * questions
    nothing = np.full(questions, np.inf)
    for number, owner in enumerate(found.owners):
        inside = np.flatnonzero(found.begins[number] >= 0)
        begin, end = scores[number, :, 0], scores[number, :, 1]
        nothing[owner] = min(nothing[owner], begin[0] + end[0])
        if not len(inside):
            continue
        pairs = begin[inside][:, None] + end[inside][None, :]
        distance = np.arange(len(inside))[None, :] - np.arange(len(inside))[:, None]
        pairs = np.where((distance >= 0) & (distance < LONGEST_ANSWER), pairs, -np.inf)
        i, j = np.unravel_index(np.argmax(pairs), pairs.shape)
        low, high = found.begins[number, inside[i]], found.ends[number, inside[j]]
        best[owner] = max(best[owner], (float(pairs[i, j]), int(low), int(high)))
    return [
        (0, 0) if may_be_none and nothing[owner] > value else (low, high)
        for owner, (value, low, high) in enumerate(best)
    ]


class Answerer:
    """Learns to point at answers; see `finetune.Learner` for the arguments."""

    def __init__(
        self,
        objective: Objective,
        params: dict,
        train: Windows,
        settings: DownstreamSettings,
        *,
        frozen: bool,
        may_be_none: bool,
        whole=None,
    ):
        self._train, self._may_be_none = train, may_be_none

        def scores(params, rows, keys=None):
            return head_scores(params, stream(objective, params, rows, keys))

        def loss(params, rows, labels, keys):
            targets, allowed = labels
            found = scores(params, rows, keys)
            found = jnp.where(allowed[:, : found.shape[1], None], found, IMPOSSIBLE)
            logs = jax.nn.log_softmax(found, axis=1)
            return -jnp.mean(jnp.take_along_axis(logs, targets[:, None, :], axis=1))

        self._scores = jax.jit(scores, out_shardings=whole)
        rows = len(train.owners)
        self._learner = Learner(objective, params, 2, loss, rows, settings, frozen=frozen)

    def fit(self, *, learning_rate: float, seed: int) -> Callable:
        """Trains; what it gives takes items and their windows and gives answers."""
        allowed = self._train.begins >= 0
        allowed[:, 0] = True
        labels = self._train.targets, allowed
        params = self._learner.fit(self._train.rows, labels, learning_rate=learning_rate, seed=seed)

        def predict(items: Sequence[Item], found: Windows) -> list[str]:
            scores = in_batches(self._scores, params, found.rows)
            spans = best_spans(scores, found, len(items), may_be_none=self._may_be_none)
            contexts = [item.texts[1].encode() for item in items]
            return [
                context[low:high].decode("utf-8", "ignore").strip()
                for context, (low, high) in zip(contexts, spans, strict=True)
            ]

        return predict


def _target(item: Item, begins: np.ndarray, ends: np.ndarray, before: int) -> tuple[int, int]:
    if not item.label:
        return 0, 0
    answer = item.label[0]
    low = len(item.texts[1][: answer.start].encode())
    high = low + len(answer.text.encode())
    if not len(begins) or low < begins[0] or high > ends[-1]:
        return 0, 0
    first = int(np.searchsorted(ends, low, side="right"))
    last = int(np.searchsorted(begins, high, side="left")) - 1
    return (before + first, before + last) if first <= last else (0, 0)
