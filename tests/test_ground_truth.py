"""Text whose entropy is known exactly: the losses must come down to it, and not below it.

The text is a first-order Markov chain over eight symbols. The best causal loss is its entropy
rate; the best masked loss is the mean entropy of the exact two-sided posterior, by
forward–backward (`support.markov`). Models are trained on fresh text, so nothing is memorised.
"""

from dataclasses import dataclass

import numpy as np
import pytest

from jaxpretrain.objectives.clm import CLM
from jaxpretrain.objectives.mlm import MLM
from support.markov import MarkovSource
from support.small import SPECIAL, small_vocab
from support.truth import HELD_OUT, as_batch, held_out, tiny_backbone, trained

STATES, LENGTH, ROWS = 8, 16, 64
SOURCE = MarkovSource.random(STATES, seed=6, concentration=0.3)
VOCAB = small_vocab(regular=STATES)
RATE = 0.3


def text(seed):
    return as_batch(SOURCE.sample(np.random.default_rng(seed), LENGTH, ROWS), first=seed * ROWS)


def held_out_loss(objective, steps, learning_rate=3e-3, **switches):
    """Trains a small model and returns its loss on 4,096 new rows, in nats per token."""
    objective = objective.bind(tiny_backbone(VOCAB, **switches), VOCAB)
    params = trained(objective, text, steps=steps, learning_rate=learning_rate)
    return held_out(objective, params, text, batches=64)["loss"]


def true_causal_loss():
    """What the chain itself gives the symbols that `held_out_loss` evaluates on."""
    logs = np.log(SOURCE.transition)
    tokens = np.concatenate([text(HELD_OUT + n).tokens - SPECIAL for n in range(64)])
    return -logs[tokens[:, :-1], tokens[:, 1:]].mean()


def test_causal_loss_comes_within_two_percent_of_the_entropy_rate_from_above():
    rate = SOURCE.entropy_rate()
    loss, truth = held_out_loss(CLM(), steps=400), true_causal_loss()
    # 61,000 symbols: the sample's own entropy is within 1 % of the rate.
    assert truth == pytest.approx(rate, rel=0.01)
    # Against the chain on the same symbols the sampling error nearly cancels.
    assert truth - 1e-3 <= loss <= truth + 0.02 * rate


MASKED = {"mask_rate": RATE, "eval_mask_rate": RATE, "mask_share": 1.0, "random_share": 0.0}


def test_masked_loss_comes_within_three_percent_of_the_two_sided_posterior():
    truth = SOURCE.exact_masked_entropy(LENGTH, RATE)
    # With GPT-2's small initial weights the same takes twice the steps.
    quick = {"steps": 500, "learning_rate": 6e-3, "init_scale": 0.1}
    loss = held_out_loss(MLM(**MASKED), layers=2, **quick)
    # 20,000 hidden symbols with a standard deviation near 0.9: 2 standard errors are 0.013.
    assert truth - 0.013 <= loss <= 1.03 * truth


@dataclass(frozen=True, kw_only=True)
class CausalMLM(MLM):
    """Masked symbols predicted with the wrong visibility."""

    visibility = "causal"


def test_masked_loss_with_causal_visibility_cannot_reach_it():
    both = SOURCE.exact_masked_entropy(LENGTH, RATE)
    left = SOURCE.exact_masked_entropy(LENGTH, RATE, sees="left")
    loss = held_out_loss(CausalMLM(**MASKED), steps=400)
    assert left > 1.2 * both
    assert left - 0.015 <= loss <= 1.05 * left


@dataclass(frozen=True, kw_only=True)
class FullCLM(CLM):
    """Next symbols predicted while looking at them."""

    visibility = "full"


def test_causal_loss_with_full_visibility_goes_below_what_is_possible():
    assert held_out_loss(FullCLM(), steps=200) < 0.5 * SOURCE.entropy_rate()
