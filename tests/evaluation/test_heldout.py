import math

import numpy as np
import pytest

from jaxpretrain.evaluation.heldout import held_out, unigram_loss
from jaxpretrain.evaluation.samples import sentences
from jaxpretrain.objectives.clm import CLM
from jaxpretrain.objectives.mlm import MLM
from jaxpretrain.types import Sum
from support.small import SPECIAL, small_batch, small_vocab


def test_unigram_loss_is_that_of_the_smoothed_frequencies():
    train = np.array([0, 9, 3, 1, 0])  # ids 0 and 1 are special, 1 is a target
    targets = np.array([0, 2, 1, 0, 1])
    p = np.array([10, 4, 2, 1]) / 17  # of ids 1 … 4, one added to each
    expected = -(2 * np.log(p[0]) + np.log(p[1]) + np.log(p[3])) / 4
    assert unigram_loss(targets, train, np.arange(len(targets)) < 2) == pytest.approx(expected)


def test_unigram_loss_of_the_training_tokens_is_near_their_entropy():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(50))
    counts = np.concatenate([np.zeros(SPECIAL), np.round(1e7 * p)])
    entropy = -(p * np.log(p)).sum()
    assert unigram_loss(counts, counts, np.arange(len(counts)) < SPECIAL) == pytest.approx(
        entropy, rel=1e-4
    )


@pytest.mark.parametrize("objective", [MLM(), CLM()], ids=lambda o: o.name)
def test_sums_of_batches_become_means_and_bits(objective):
    vocab = small_vocab()
    objective = objective.bind(None, vocab)

    def step(params, batch):
        weight = np.float32(batch.tokens.size)
        targets = np.bincount(batch.tokens.ravel(), minlength=vocab.size).astype(np.float32)
        return {"loss": Sum(2 * weight, weight), "accuracy": Sum(weight / 4, weight)}, targets

    batches = [small_batch(seed, vocab, rows=4 + seed) for seed in range(3)]
    result = held_out(step, {}, batches, objective, np.ones(vocab.size))
    tokens = sum(b.tokens.size for b in batches)
    text_bytes = 3 * sum((b.tokens >= SPECIAL).sum() for b in batches)
    assert result.loss == 2 and result.accuracy == 0.25 and result.predicted == tokens
    bits = 2 * tokens / math.log(2) / text_bytes
    if objective.is_likelihood:
        assert (result.bits_per_byte, result.bits_per_hidden_byte) == (pytest.approx(bits), None)
    else:
        assert (result.bits_per_byte, result.bits_per_hidden_byte) == (None, pytest.approx(bits))


def test_sentences_are_cut_at_their_ends_and_at_special_tokens():
    vocab = small_vocab()
    end = SPECIAL + 5
    vocab.is_sentence_end[end] = True
    line_break = SPECIAL + 6
    vocab.is_sentence_end[line_break], vocab.piece_bytes[line_break] = True, 0
    a, b = SPECIAL + 1, SPECIAL + 2
    tokens = [vocab.bos, a, b, end, b, line_break, a, end, a, vocab.eos, vocab.bos, b, a, a]
    found = sentences(np.array(tokens), vocab, shortest=3, longest=4)
    assert [f.tolist() for f in found] == [[a, b, end], [b, line_break, a, end], [b, a, a]]
