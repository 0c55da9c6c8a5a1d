"""Zero-shot minimal pairs: which of two sentences a model finds likelier (BLiMP: Warstadt et al.
2020, arXiv:1912.00582)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.data.tokenizer_base import AnyTokenizer
from jaxpretrain.errors import UserError
from jaxpretrain.evaluation.scoring import row_of
from jaxpretrain.objectives.base import Objective

ROWS = 128  # of one pass


def can_judge(objective: Objective) -> bool:
    """Whether the objective gives a likelihood of a sentence, or a pseudo-likelihood."""
    causal = objective.samples == "continuations" and objective.visibility == "causal"
    return causal or objective.samples == "gaps"


def sentence_nats(
    objective: Objective,
    params: dict,
    tokenizer: AnyTokenizer,
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
    if not can_judge(objective):
        raise UserError(
            f"{objective.name} gives no likelihood of a sentence: it cannot judge minimal pairs"
        )
    rows = [row_of(objective, tokenizer, text, length=length).ids for text in texts]
    # To the next multiple of 8: few shapes to compile.
    width = -(-max(map(len, rows)) // 8) * 8
    owners, inputs, slots, targets, sizes = [], [], [], [], []
    for owner, ids in enumerate(rows):
        places = np.arange(1, len(ids) - 1) if masked else np.arange(len(ids) - 1)
        if masked:
            for place in places:
                shown = ids.copy()
                shown[place] = vocab.mask
                owners.append(owner)
                inputs.append(_padded(shown, width, vocab.pad))
                sizes.append(len(ids))
                slots.append([place])
                targets.append([ids[place]])
        else:
            owners.append(owner)
            inputs.append(_padded(ids[:-1], width, vocab.pad))
            sizes.append(len(ids) - 1)
            slots.append(_padded(places, width, -1))
            targets.append(_padded(ids[1:], width, vocab.pad))

    # Padding may go beyond the positions that a model has learned.
    config = objective.backbone.config
    there = config.max_length if config.positions == "learned" else width
    places = jnp.minimum(jnp.arange(width), there - 1)

    @jax.jit
    def nats(params, inputs, sizes, slots, targets):
        positions = jnp.broadcast_to(places, inputs.shape)
        hidden = objective.backbone.encode(
            params,
            inputs,
            (jnp.arange(width) < sizes[:, None]).astype(jnp.int32),
            positions,
            visibility=objective.visibility,
        )
        hidden = jnp.take_along_axis(hidden, jnp.maximum(slots, 0)[:, :, None], axis=1)
        logs = jax.nn.log_softmax(objective.backbone.logits(params, hidden).astype(jnp.float32))
        each = -jnp.take_along_axis(logs, targets[:, :, None], axis=2)[:, :, 0]
        return jnp.sum(jnp.where(slots >= 0, each, 0.0), axis=1)

    found = np.zeros(len(texts))
    for start in range(0, len(owners), ROWS):
        each = (inputs, sizes, slots, targets)
        part = [np.array(x[start : start + ROWS], np.int32) for x in each]
        missing = ROWS - len(part[0])
        part = [np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in part]
        values = np.asarray(nats(params, *part), np.float64)[: ROWS - missing]
        np.add.at(found, owners[start : start + ROWS], values)
    return found


def _padded(values: np.ndarray, width: int, fill: int) -> np.ndarray:
    return np.pad(values, (0, width - len(values)), constant_values=fill)
