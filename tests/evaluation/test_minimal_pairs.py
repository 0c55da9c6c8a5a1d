"""Minimal pairs: sentences scored as one at a time, accuracies counted by hand."""

import gzip
import json

import jax
import numpy as np
import pytest

from jaxpretrain.assemble import build
from jaxpretrain.data.store import Store
from jaxpretrain.errors import UserError
from jaxpretrain.evaluation import minimal_pairs, scoring
from jaxpretrain.evaluation.minimal_pairs import Pair, accuracies, read, sentence_nats
from jaxpretrain.main import main
from jaxpretrain.train import train
from support import tiny_run

TEXTS = ["The statement is executed.", "Is it?", "A class may be defined here, or not."]


@pytest.mark.parametrize("name", ["mlm", "clm", "bert"])
def test_many_sentences_cost_what_each_costs_alone(name, tiny_config_file, monkeypatch):
    monkeypatch.setattr(minimal_pairs, "ROWS", 5)  # so that there are several passes
    config = tiny_run.config(tiny_config_file, objective__name=name, model__token_types=2)
    tokenizer = Store.open(config.store.path).tokenizer
    objective = build(config, tokenizer.vocab).objective
    asked = objective, jax.jit(objective.init)(jax.random.key(1)), tokenizer
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


def test_accuracies_are_counted_by_phenomenon_and_ties_count_half():
    pairs = [
        Pair("good", "bad", "a", "x"),  # 4 and 3 bytes
        Pair("good", "bad", "a", "x"),
        Pair("good", "baad", "b", "y"),
        Pair("good", "baad", "b", "z"),
    ]
    good, bad = np.array([4.0, 3.0, 2.0, 1.0]), np.array([3.5, 4.0, 2.0, 3.0])
    found = accuracies(pairs, good, bad)
    assert found["a"] == (2, 0.5, 1.0)  # 4 nats in 4 bytes are less than 3.5 in 3
    assert found["b"] == (2, 0.75, 0.75)
    assert found["all"] == (4, 0.625, 0.875)


ROW = {"sentence_good": "A.", "sentence_bad": "B.", "linguistics_term": "t", "UID": "u"}


def test_files_are_read_plain_and_compressed(tmp_path):
    lines = "".join(json.dumps(ROW | {"sentence_good": f"{n}."}) + "\n" for n in range(3))
    (tmp_path / "b.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert read(str(tmp_path / "b.jsonl"))[2] == Pair("2.", "B.", "t", "u")
    assert [pair.good for pair in read(str(tmp_path), limit=2)] == ["0.", "1.", "0.", "1."]
    (tmp_path / "b.jsonl").write_text('{"sentence_good": "A."}\n')
    with pytest.raises(UserError, match=r"b.jsonl:1 is no minimal pair: it needs sentence_good"):
        read(str(tmp_path))
    with pytest.raises(UserError, match="there are no minimal pairs at"):
        read(str(tmp_path / "none"))


def test_from_the_command_line(tiny_config_file, tmp_path, capsys):
    train(tiny_run.config(tiny_config_file, objective__name="clm"), tmp_path / "run")
    pairs = [ROW | {"sentence_good": "The statement is.", "sentence_bad": "Zq xv!! jk"}] * 3
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    asked = ["evaluate", f"--workdir={tmp_path / 'run'}", f"--minimal-pairs={tmp_path / 'p.jsonl'}"]
    capsys.readouterr()
    assert main([*asked, "--limit=2"]) == 0
    assert "minimal pairs" in capsys.readouterr().out
    found = json.loads((tmp_path / "run/evaluation.json").read_text())["minimal_pairs"]
    assert found["all"]["pairs"] == found["t"]["pairs"] == 2
    assert main(["evaluate", f"--workdir={tmp_path / 'run'}", "--minimal-pairs=none"]) == 2
    assert "there are no minimal pairs at none" in capsys.readouterr().err
