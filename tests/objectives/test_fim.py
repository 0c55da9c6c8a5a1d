"""Fill in the middle against the reference."""

from collections import Counter

import jax
import numpy as np
from scipy import stats

from jaxpretrain.objectives.fim import FIM
from support import causal_reference as reference
from support.small import document_rows, small_vocab

VOCAB = small_vocab()
UNLIKELY = 1e-3


def written(objective, batch, *, train=True):
    make = jax.jit(objective.bind(None, VOCAB).corrupt, static_argnames=("train", "progress"))
    keys = jax.random.split(jax.random.key(0), len(batch.tokens))
    return jax.tree.map(np.asarray, make(keys, batch, train=train, progress=None))


def test_thousands_of_rows_are_restored():
    batch = document_rows(0, VOCAB, rows=3000, length=20)
    example = written(FIM(), batch)
    kinds = Counter()
    for row in range(3000):
        sequence = example.inputs[row][example.segments[row] > 0].tolist()
        original = batch.tokens[row][batch.segments[row] > 0].tolist()
        if not original:
            assert not sequence
            continue
        tokens, kind, _, _ = reference.undo_fim(sequence, VOCAB)
        assert tokens == original
        assert (kind != "none") == example.extra["fim"][row]
        kinds[kind] += 1
        # Every token but the first is predicted, from those before it.
        assert example.weights[row].sum() == len(sequence) - 1
        assert example.targets[row, : len(sequence) - 1].tolist() == sequence[1:]
    total = sum(kinds.values())
    assert abs(kinds["none"] / total - 0.5) < 5 * 0.5 / np.sqrt(total)


def test_cuts_have_the_distribution_of_the_paper():
    """All PSM: there both cuts can be read off."""
    n, rows = 6, 5000
    batch = document_rows(1, VOCAB, rows=rows, length=n, full=True)
    example = written(FIM(rate=1.0, spm_share=0.0), batch)
    found = Counter()
    for row in range(rows):
        sequence = example.inputs[row][example.segments[row] > 0].tolist()
        a = sequence.index(VOCAB.fim_suffix) - 1
        b = n - (sequence.index(VOCAB.fim_middle) - sequence.index(VOCAB.fim_suffix) - 1)
        found[a, b] += 1
        original = batch.tokens[row].tolist()
        assert sequence == reference.fim(original, a, b, "psm", VOCAB)
    expected = reference.fim_cut_probabilities(n)
    assert set(found) == set(expected)
    keys = list(expected)
    odds = np.array([float(expected[key]) for key in keys])
    assert stats.chisquare([found[key] for key in keys], odds * rows).pvalue > UNLIKELY


def test_rates_are_settings_and_held_out_rates_are_the_papers():
    batch = document_rows(2, VOCAB, rows=2000, length=12, full=True)
    assert not written(FIM(rate=0.0), batch).extra["fim"].any()
    spm = written(FIM(rate=1.0, spm_share=1.0), batch)
    assert (spm.inputs[:, 0] == VOCAB.fim_prefix).all()
    assert (spm.inputs[:, 1] == VOCAB.fim_suffix).all()
    held = [written(FIM(rate=rate), batch, train=False).inputs for rate in (0.0, 1.0)]
    np.testing.assert_array_equal(*held)
    assert 0.4 < (held[0][:, 0] == VOCAB.fim_prefix).mean() < 0.6
