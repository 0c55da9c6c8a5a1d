"""Zero-shot minimal pairs: which of two sentences a model finds likelier (BLiMP: Warstadt et al.
2020, arXiv:1912.00582)."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.data.sources_lines import open_bytes
from jaxpretrain.data.tokenizer import Tokenizer
from jaxpretrain.errors import UserError
from jaxpretrain.evaluation.scoring import row_of
from jaxpretrain.objectives.base import Objective
from jaxpretrain.storage import access

ROWS = 128  # of one pass


class Pair(NamedTuple):
    """Two sentences that differ in one thing, of which the first is acceptable."""

    good: str
    bad: str
    phenomenon: str
    paradigm: str


class Accuracy(NamedTuple):
    """How often the acceptable sentence is the likelier one; a tie counts half.

    Attributes:
        pairs: how many.
        total: by the log-likelihood of the whole sentence.
        per_byte: by the log-likelihood divided by the bytes of text, which does not favour the
            shorter of two sentences.
    """

    pairs: int
    total: float
    per_byte: float


def read(path: str, limit: int = 0) -> list[Pair]:
    """Reads BLiMP's JSONL: ``sentence_good``, ``sentence_bad``, and the names of what is tested.

    Args:
        path: a file, ``.jsonl`` or ``.jsonl.gz``, or a folder of such.
        limit: pairs of each file; 0 for all.

    Raises:
        UserError: no such files, or a line that is no pair, by file and line.
    """
    where = Path(path)
    files = sorted([*where.glob("*.jsonl"), *where.glob("*.jsonl.gz")])
    files = files if where.is_dir() else [where]
    if not files or not files[0].is_file():
        raise UserError(f"there are no minimal pairs at {path}: give a .jsonl file or their folder")
    pairs = []
    for file in files:
        name = file.name.partition(".")[0]
        with access(f"read {file}"), open_bytes(str(file)) as read_from:
            lines = list(itertools.islice(read_from, limit or None))
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                good, bad = row["sentence_good"], row["sentence_bad"]
                kind = row.get("linguistics_term") or row.get("field") or name
                pairs.append(Pair(str(good), str(bad), str(kind), str(row.get("UID") or name)))
            except (ValueError, TypeError, KeyError, AttributeError):
                raise UserError(
                    f"{file}:{number} is no minimal pair: it needs sentence_good and sentence_bad"
                ) from None
    return pairs


def sentence_nats(
    objective: Objective,
    params: dict,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    length: int,
) -> np.ndarray:
    """Negative log-likelihood of each sentence, in nats, float64 ``[texts]``.

    A causal model's is that of the sentence and its end. A masked model's is the
    pseudo-log-likelihood, each token given all others (Salazar et al. 2020, arXiv:1910.14659).

    Args:
        objective: bound; its `samples` say which of the two.
        params: parameters.
        tokenizer: of the store.
        texts: sentences.
        length: of a row, the most that the model reads.

    Raises:
        UserError: the objective gives no likelihood of a text, or a sentence is too long.
    """
    vocab = tokenizer.vocab
    masked = objective.samples == "gaps"
    if not masked and not (
        objective.samples == "continuations" and objective.visibility == "causal"
    ):
        raise UserError(
            f"{objective.name} gives no likelihood of a sentence: it cannot judge minimal pairs"
        )
    rows = [row_of(objective, tokenizer, text, length=length).ids for text in texts]
    # To the next multiple of 8: few shapes to compile.
    width = -(-max(map(len, rows)) // 8) * 8
    owners, inputs, slots, targets = [], [], [], []
    for owner, ids in enumerate(rows):
        places = np.arange(1, len(ids) - 1) if masked else np.arange(len(ids) - 1)
        if masked:
            for place in places:
                shown = ids.copy()
                shown[place] = vocab.mask
                owners.append(owner)
                inputs.append(_padded(shown, width, vocab.pad))
                slots.append([place])
                targets.append([ids[place]])
        else:
            owners.append(owner)
            inputs.append(_padded(ids[:-1], width, vocab.pad))
            slots.append(_padded(places, width, -1))
            targets.append(_padded(ids[1:], width, vocab.pad))

    @jax.jit
    def nats(params, inputs, slots, targets):
        positions = jnp.broadcast_to(jnp.arange(width), inputs.shape)
        hidden = objective.backbone.encode(
            params,
            inputs,
            (inputs != vocab.pad).astype(jnp.int32),
            positions,
            visibility=objective.visibility,
        )
        hidden = jnp.take_along_axis(hidden, jnp.maximum(slots, 0)[:, :, None], axis=1)
        logs = jax.nn.log_softmax(objective.backbone.logits(params, hidden).astype(jnp.float32))
        each = -jnp.take_along_axis(logs, targets[:, :, None], axis=2)[:, :, 0]
        return jnp.sum(jnp.where(slots >= 0, each, 0.0), axis=1)

    found = np.zeros(len(texts))
    for start in range(0, len(owners), ROWS):
        part = [np.array(x[start : start + ROWS], np.int32) for x in (inputs, slots, targets)]
        missing = ROWS - len(part[0])
        part = [np.pad(x, ((0, missing), (0, 0))) for x in part]
        values = np.asarray(nats(params, *part), np.float64)[: ROWS - missing]
        np.add.at(found, owners[start : start + ROWS], values)
    return found


def accuracies(pairs: Sequence[Pair], good: np.ndarray, bad: np.ndarray) -> dict[str, Accuracy]:
    """Accuracy over all pairs, as "all", and by phenomenon.

    Args:
        pairs: see `read`.
        good: nats of the acceptable sentences, ``[pairs]``.
        bad: nats of the others.
    """

    def wins(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a < b) + 0.5 * (a == b)

    sizes = np.array([[len(p.good.encode()), len(p.bad.encode())] for p in pairs], float).T
    total, per_byte = wins(good, bad), wins(good / sizes[0], bad / sizes[1])
    kinds = np.array([pair.phenomenon for pair in pairs])
    groups = {"all": np.ones(len(pairs), bool)}
    groups |= {kind: kinds == kind for kind in sorted(set(kinds.tolist()))}
    return {
        name: Accuracy(
            int(member.sum()), float(total[member].mean()), float(per_byte[member].mean())
        )
        for name, member in groups.items()
    }


def _padded(values: np.ndarray, width: int, fill: int) -> np.ndarray:
    return np.pad(values, (0, width - len(values)), constant_values=fill)
