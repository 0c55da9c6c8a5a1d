"""A mixture of sources from config to batches, the checks on a store, and what runs share."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxpretrain.assemble import (
    Evaluator,
    assemble,
    held_out_batches,
    prepare_store,
    store_path,
    traced_step,
    training_batches,
    training_counts,
)
from jaxpretrain.config import complete
from jaxpretrain.errors import UserError
from support import tiny_run


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    file = tiny_run.write(folder)
    raw = tiny_run.config(file).to_dict()
    texts = folder / "texts"
    for number, path in enumerate(sorted(texts.iterdir())):
        other = folder / ("many" if number % 4 else "few")
        other.mkdir(exist_ok=True)
        path.rename(other / path.name)
    raw["source"] = {
        "name": "mixture",
        "parts": {
            "few": {"name": "text", "path": f"{folder}/few/*.txt", "weight": 3.0},
            "many": {"name": "text", "path": f"{folder}/many/*.txt", "weight": 1.0},
        },
    }
    config = complete(raw)
    prepare_store(config)
    return config


def test_rows_come_in_the_shares_of_the_weights(mixture):
    pieces = assemble(mixture)
    few, many = pieces.store.sets("train")
    assert few.tokens_total < many.tokens_total
    rows_of_few = -(-few.tokens_total // mixture.data.length)
    ids = np.concatenate([np.asarray(batch.row_ids) for batch in training_batches(pieces, 0, 128)])
    assert len(ids) == 1024 and (ids < rows_of_few).sum() == 768
    # The set that is read oftener than it has rows goes on to its next epochs.
    epochs = np.concatenate([np.asarray(b.epochs) for b in training_batches(pieces, 0, 128)])
    assert epochs[ids < rows_of_few].max() == 767 // rows_of_few


def test_the_unigram_baseline_weighs_the_sources_as_training_does(mixture):
    pieces = assemble(mixture)
    few, many = (s.vocab_counts / s.tokens_total for s in pieces.store.sets("train"))
    counts = training_counts(pieces)
    np.testing.assert_allclose(counts / counts.sum(), 0.75 * few + 0.25 * many)


def test_held_out_rows_are_all_read_once(mixture):
    pieces = assemble(mixture)
    tokens = sum(
        int((np.asarray(batch.segments) > 0).sum()) for batch in held_out_batches(pieces, "test")
    )
    assert tokens == sum(s.tokens_total for s in pieces.store.sets("test"))


def test_weights_do_not_name_the_store_but_sources_and_tokenizer_do(mixture):
    def path(**changes):
        raw = mixture.to_dict() | {"store": {}}
        for section, values in changes.items():
            raw[section] = raw[section] | values
        return store_path(complete(raw))

    base = path()
    parts = mixture.source.parts.to_dict()
    weighed = {"parts": {k: v | {"weight": 1.5} for k, v in parts.items()}}
    assert path(source=weighed) == base
    assert path(data={"length": 16}) == base and path(model={"width": 64}) == base
    assert path(tokenizer={"vocab_size": 900}) != base
    assert path(source={"parts": {"few": parts["few"]}}) != base


def test_training_batches_are_on_all_devices(mixture):
    batch = next(training_batches(assemble(mixture), 0, 1))
    assert len(batch.tokens.sharding.device_set) == jax.device_count() == 8
    assert batch.tokens.addressable_shards[0].data.shape == (1, 32)


def test_an_unfinished_or_missing_store_is_named(mixture, tmp_path):
    raw = mixture.to_dict()
    raw["store"] |= {"path": str(tmp_path / "nothing")}
    with pytest.raises(UserError, match="nothing: run 'jaxpretrain prepare'"):
        assemble(complete(raw))


def test_runs_that_differ_in_their_seeds_share_their_programs(tiny_config_file):
    """Each opens the store, and makes the model and the objective, anew."""
    one, other = (
        assemble(tiny_run.config(tiny_config_file, seed=seed, data__prefetch=seed + 1))
        for seed in (0, 1)
    )
    assert one.store is not other.store and one.objective is not other.objective
    assert one.abstract is other.abstract
    assert traced_step(one).jaxpr is traced_step(other).jaxpr
    assert Evaluator(one, "test")._step is Evaluator(other, "validation")._step


@pytest.mark.parametrize(
    "changed",
    [
        {"objective__mask_rate": 0.3},
        {"model__mlp_width": 20},
        {"optimizer__learning_rate": 0.5},
        {"train__steps": 7},
        {"guard__largest_grad_norm": 3.0},
        {"mesh__fsdp": 2},
    ],
)
def test_runs_that_differ_in_what_they_compute_do_not(tiny_config_file, changed):
    one = assemble(tiny_run.config(tiny_config_file))
    other = assemble(tiny_run.config(tiny_config_file, **changed))
    assert traced_step(one).jaxpr is not traced_step(other).jaxpr


def test_a_vocabulary_is_what_it_says(tiny_config_file):
    first, again = (assemble(tiny_run.config(tiny_config_file)).objective.vocab for _ in range(2))
    assert first is not again and first == again and hash(first) == hash(again)
    assert first == replace(first, owner="another")
    flipped = first.is_word_start.copy()
    flipped[-1] = ~flipped[-1]
    for changed in ({"is_word_start": flipped}, {"mask": 9}, {"is_word_start": first.is_special}):
        assert first != replace(first, **changed)
    assert first != np.float32(0)
