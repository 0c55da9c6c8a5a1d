"""The rest of the family on text whose answer is known exactly; see `test_ground_truth.py`."""

from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
import pytest

from jaxpretrain.objectives.crops import Crops
from jaxpretrain.objectives.masked_diffusion import MaskedDiffusion
from jaxpretrain.objectives.nsp import NSP
from jaxpretrain.objectives.prefix_lm import PrefixLM
from jaxpretrain.objectives.span_corruption import SpanCorruption
from jaxpretrain.step import EVAL_SEED
from support.markov import MarkovSource
from support.markov_objectives import (
    nsp_bayes_error,
    nsp_bayes_loss,
    prefix_lm_loss,
    row_entropy,
    span_corruption_nll,
)
from support.small import SPECIAL, small_vocab
from support.truth import HELD_OUT, as_batch, held_out, tiny_backbone, trained

STATES, ROWS = 8, 64
SOURCE = MarkovSource.random(STATES, seed=6, concentration=0.3)
VOCAB = small_vocab(regular=STATES)


def text(seed, length=16, rows=ROWS):
    return as_batch(SOURCE.sample(np.random.default_rng(seed), length, rows), first=seed * rows)


def bound(objective, **switches):
    return objective.bind(tiny_backbone(VOCAB, **switches), VOCAB)


def test_prefix_lm_comes_within_two_percent_of_its_conditional_entropy():
    objective = bound(PrefixLM())
    params = trained(objective, text, steps=500)
    loss = held_out(objective, params, text, batches=64)["loss"]
    truth = prefix_lm_loss(SOURCE, 16)
    # 35,000 symbols with a standard deviation near 0.9: 2 standard errors are 0.01.
    assert truth - 0.01 <= loss <= 1.02 * truth + 0.01


@dataclass(frozen=True, kw_only=True)
class Half(SpanCorruption):
    """Half of a short row in two spans, in held-out evaluation too."""

    noise_density: float = 0.5
    mean_span_length: float = 2.0
    EVAL = (0.5, 2.0)


@pytest.mark.parametrize(
    "layers, decoder_layers", [(2, 0), (1, 1)], ids=["single stack", "encoder-decoder"]
)
def test_span_corruption_comes_within_two_percent_of_its_conditional_entropy(
    layers, decoder_layers
):
    """The spans' lengths are part of what is to be predicted."""
    batches, rows = 8, 128
    read = partial(text, length=8, rows=rows)
    shown = partial(text, length=8, rows=64)
    objective = bound(Half(), layers=layers, decoder_layers=decoder_layers, init_scale=0.1)
    params = trained(objective, shown, steps=800, learning_rate=6e-3)
    loss = held_out(objective, params, read, batches=batches)["loss"]
    make = jax.jit(partial(objective.example, train=False, progress=None))
    nats = tokens = 0
    for number in range(batches):
        example, _ = make(read(HELD_OUT + number), jax.random.key(EVAL_SEED))
        example = jax.device_get(example)
        for row in range(rows):
            if decoder_layers:
                source = example.source.inputs[row]
            else:
                source = example.inputs[row, : example.prefix[row]]
            nats += span_corruption_nll(SOURCE, pieces(source), pieces(example.targets[row]))
            tokens += len(example.targets[row])
    truth = nats / tokens
    assert truth > 0.3
    assert truth - 1e-3 <= loss <= 1.02 * truth


def pieces(tokens):
    """Runs of symbols between sentinels, up to eos."""
    found = [[]]
    for token in tokens[: list(tokens).index(VOCAB.eos)]:
        if token >= SPECIAL:
            found[-1].append(int(token) - SPECIAL)
        else:
            found.append([])
    return [run for run in found if run]


def test_next_sentence_prediction_comes_to_the_bayes_error_of_its_pairs():
    read = partial(text, length=4, rows=256)
    # Neither part alone says anything, so small initial weights stay on a plateau for long.
    objective = bound(NSP(), token_types=2, init_scale=0.15)
    params = trained(objective, read, steps=600)
    found = held_out(objective, params, read, batches=32)
    error, loss = nsp_bayes_error(SOURCE), nsp_bayes_loss(SOURCE)
    # 8,192 pairs: 2 standard errors of a frequency near 0.2 are 0.009.
    assert 0.05 < error < 0.4
    assert error - 0.009 <= 1 - found["pair_accuracy"] <= error + 0.02
    assert loss - 0.02 <= found["pair_loss"] <= loss + 0.04


def test_the_bound_of_masked_diffusion_is_above_the_entropy_and_close_to_it():
    objective = bound(MaskedDiffusion(), layers=2, init_scale=0.1)
    params = trained(objective, text, steps=500, learning_rate=6e-3)
    loss = held_out(objective, params, text, batches=128)["loss"]
    truth = row_entropy(SOURCE, 16) / 16
    # 8,192 rows; the bound of one row has a standard deviation of about 0.3 nats per token.
    assert truth - 0.007 <= loss <= 1.04 * truth


def test_contrastive_loss_comes_to_its_optimum_on_separable_documents():
    """Each document has a symbol of its own: vectors at the corners of a simplex are best."""
    temperature = 0.5

    def separable(seed):
        return as_batch(np.repeat(np.random.default_rng(seed).permutation(STATES)[:, None], 12, 1))

    objective = bound(Crops(temperature=temperature))
    params = trained(objective, separable, steps=200)
    loss = held_out(objective, params, separable, batches=8)["loss"]
    others = STATES - 1
    optimum = np.log1p(others * np.exp(-(1 + 1 / others) / temperature))
    assert optimum - 1e-4 <= loss <= optimum + 0.02


def test_contrastive_loss_is_the_logarithm_of_the_batch_where_nothing_tells_rows_apart():
    def alike(seed):
        return as_batch(np.tile(np.arange(12) % STATES, (16, 1)), first=16 * seed)

    objective = bound(Crops(temperature=0.5))
    params = trained(objective, alike, steps=100)
    found = held_out(objective, params, alike, batches=64)
    assert found["loss"] == pytest.approx(np.log(16), abs=0.02)
