"""Prefix language modelling against the reference, on both kinds of model."""

from collections import Counter

import jax
import numpy as np
import pytest
from scipy import stats

from jaxpretrain.objectives.prefix_lm import PrefixLM
from support import causal_reference as reference
from support.small import document_rows, small_backbone, small_vocab

VOCAB = small_vocab()


@pytest.mark.parametrize("decoder", [0, 1], ids=["single", "decoder"])
def test_rows_are_those_of_the_reference_with_uniform_splits(decoder):
    rows, length = 1500, 9
    batch = document_rows(0, VOCAB, rows=rows, length=length)
    objective = PrefixLM().bind(small_backbone(VOCAB, decoder_layers=decoder), VOCAB)
    make = jax.jit(objective.corrupt, static_argnames=("train", "progress"))
    keys = jax.random.split(jax.random.key(0), rows)
    example = jax.tree.map(np.asarray, make(keys, batch, train=True, progress=None))
    splits = Counter()
    for row in range(rows):
        tokens = batch.tokens[row][batch.segments[row] > 0].tolist()
        target_used = example.weights[row] > 0
        if len(tokens) < 2:
            assert not target_used.any() and not example.segments[row].any()
            continue
        inputs = example.inputs[row][example.segments[row] > 0].tolist()
        targets = example.targets[row][target_used].tolist()
        split = len(tokens) - len(targets)
        if decoder:
            source = example.source.inputs[row][example.source.segments[row] > 0].tolist()
            expected = reference.prefix_lm(tokens, split, VOCAB.pad, "encoder_decoder")
            assert (source, inputs, targets) == tuple(map(list, expected))
        else:
            assert example.prefix[row] == split
            shown, prefix, wanted, weights = reference.prefix_lm(tokens, split, VOCAB.pad, "single")
            # The last token of the row predicts nothing and is not read.
            assert inputs == list(shown)[:-1] and prefix == split
            where = np.flatnonzero(weights)
            assert example.slots[row][target_used].tolist() == where.tolist()
            assert targets == np.asarray(wanted)[where].tolist()
        if len(tokens) == length:
            splits[split] += 1
    assert set(splits) == set(range(1, length))
    assert stats.chisquare(list(splits.values())).pvalue > 1e-3
