"""Minimal pairs: many sentences scored at once cost what each costs alone.

How pairs are read is tested with the other tasks, how they are counted with the other measures.
"""

import jax
import numpy as np
import pytest

from jaxpretrain.assemble import build
from jaxpretrain.data.store import Store
from jaxpretrain.errors import UserError
from jaxpretrain.evaluation import minimal_pairs, scoring
from jaxpretrain.evaluation.minimal_pairs import can_judge, sentence_nats
from jaxpretrain.objectives import OBJECTIVES
from support import tiny_run
from support.small import at_random, small_backbone, small_vocab

TEXTS = ["The statement is executed.", "Is it?", "A class may be defined here, or not."]


@pytest.mark.parametrize("name", ["mlm", "clm"])
def test_many_sentences_cost_what_each_costs_alone(name, tiny_config_file, monkeypatch):
    monkeypatch.setattr(minimal_pairs, "ROWS", 5)  # so that there are several passes
    config = tiny_run.config(tiny_config_file, objective__name=name, model__token_types=2)
    tokenizer = Store.open(config.store.path).tokenizer
    pieces = build(config, tokenizer.vocab)
    asked = pieces.objective, at_random(pieces.abstract.params), tokenizer
    found = sentence_nats(*asked, TEXTS, length=32)
    one = scoring.causal_tokens if name == "clm" else scoring.masked_tokens
    alone = [sum(t.nats for t in one(*asked, text, length=32)) for text in TEXTS]
    np.testing.assert_allclose(found, alone, rtol=1e-5)


def test_an_objective_without_a_likelihood_is_refused(tiny_config_file):
    config = tiny_run.config(tiny_config_file, objective__name="simcse")
    tokenizer = Store.open(config.store.path).tokenizer
    objective = build(config, tokenizer.vocab).objective
    with pytest.raises(UserError, match="simcse gives no likelihood of a sentence"):
        sentence_nats(objective, {}, tokenizer, TEXTS, length=32)


@pytest.mark.parametrize(
    ("name", "judges"),
    [
        ("mlm", True), ("bert", True), ("clm", True), ("fim", True), ("masked_diffusion", True),
        ("simcse", False), ("prefix_lm", False), ("rtd", False), ("nsp", False),
    ],
)  # fmt: skip
def test_an_objective_judges_that_gives_every_token_a_likelihood(name, judges):
    vocab = small_vocab()
    objective = OBJECTIVES[name]().bind(small_backbone(vocab, token_types=2, dropout=0.1), vocab)
    assert can_judge(objective) == judges


def test_padding_beyond_the_learned_positions_changes_nothing(tiny_config_file):
    config = tiny_run.config(tiny_config_file)
    tokenizer = Store.open(config.store.path).tokenizer
    size = max(len(tokenizer.encode(text)) for text in TEXTS) + 2
    assert size % 8, "the padded width must be more than the positions"
    found, given = [], {}
    for longest in (size, size + 40):
        backbone = small_backbone(
            tokenizer.vocab, layers=1, positions="learned", max_length=longest
        )
        objective = OBJECTIVES["mlm"]().bind(backbone, tokenizer.vocab)
        params = at_random(jax.eval_shape(objective.init, jax.random.key(1)))
        given = given or params
        table = params["positions"]["embedding"]
        table[:size] = given["positions"]["embedding"][:size]
        params = given | {"positions": {"embedding": table}}
        found.append(sentence_nats(objective, params, tokenizer, TEXTS, length=size))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
