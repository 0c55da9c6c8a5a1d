"""What a model says of texts, against the objectives' own losses on the same texts."""

import jax
import numpy as np
import pytest

from jaxpretrain.assemble import build
from jaxpretrain.data.store import Store
from jaxpretrain.errors import UserError
from jaxpretrain.evaluation import scoring
from jaxpretrain.main import main
from jaxpretrain.objectives.contrastive import Views
from jaxpretrain.types import Batch, Example
from support import tiny_run
from support.made_run import LENGTH, make_run
from support.small import at_random

TEXT = "The statement is executed."


@pytest.fixture(scope="module")
def tokenizer(tiny_config_file):
    return Store.open(tiny_run.config(tiny_config_file).store.path).tokenizer


@pytest.fixture
def model(tiny_config_file, tokenizer):
    def make(name, **overrides):
        config = tiny_run.config(tiny_config_file, objective__name=name, **overrides)
        pieces = build(config, tokenizer.vocab)
        return pieces.objective, at_random(pieces.abstract.params), tokenizer

    return make


def batch_of(rows):
    wide = np.stack(rows).astype(np.int32)
    ones, places = np.ones_like(wide), np.broadcast_to(np.arange(wide.shape[1]), wide.shape)
    numbers = np.arange(len(rows), dtype=np.int32)
    return Batch(wide, ones, places.astype(np.int32), numbers, 0 * numbers, numbers)


def test_a_causal_text_costs_what_its_loss_says(model):
    objective, params, tokenizer = asked = model("clm")
    tokens = scoring.causal_tokens(*asked, TEXT, length=32)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert [token.piece for token in tokens] == [
        *tokenizer.pieces(tokenizer.encode(TEXT)), "</s>",
    ]  # fmt: skip
    vocab = tokenizer.vocab
    batch = batch_of([[vocab.bos, *tokenizer.encode(TEXT), vocab.eos]])

    @jax.jit
    def loss_of(params, batch):
        how = {"train": False, "progress": None}
        example, keys = objective.example(batch, jax.random.key(0), **how)
        return objective.loss(params, example, keys, **how)["loss"]

    loss = loss_of(params, batch)
    assert sum(token.nats for token in tokens) == pytest.approx(float(loss.total), rel=1e-5)
    assert float(loss.weight) == len(tokens)


def test_a_gap_and_a_hidden_token_are_one_question(model):
    """The probability of the word that was there, by both; and by the objective's loss."""
    objective, params, tokenizer = asked = model("mlm")
    tokens = scoring.masked_tokens(*asked, TEXT, length=32)
    ids = tokenizer.encode(TEXT)
    assert [token.piece for token in tokens] == tokenizer.pieces(ids)
    is_word = tokenizer.vocab.is_word_start[ids]
    place = next(i for i in range(1, len(ids) - 1) if is_word[i] and is_word[i + 1])
    word = tokenizer.decode(ids[place : place + 1]).strip()
    shown = TEXT.replace(f" {word}", " [MASK]", 1)
    [candidates] = scoring.gaps(*asked, shown, length=32, top=tokenizer.vocab.size)
    assert sum(p for _, p in candidates) == pytest.approx(1, abs=1e-4)
    piece = tokens[place].piece.replace("\u2581", "")
    here = [p for shown, p in candidates if shown == piece]
    assert min(abs(np.exp(-tokens[place].nats) / p - 1) for p in here) < 1e-4

    vocab = tokenizer.vocab
    row = np.array([vocab.bos, *ids, vocab.eos], np.int32)[None]
    hidden = row.copy()
    hidden[0, place + 1] = vocab.mask
    ones, places = np.ones_like(row), np.arange(row.shape[1], dtype=np.int32)[None]
    slot = np.array([[place + 1]], np.int32)
    one = np.ones((1, 1), np.float32)
    example = Example(hidden, ones, places, row[:, place + 1 : place + 2], slot, one)
    how = {"train": False, "progress": None}
    loss = jax.jit(lambda *given: objective.loss(*given, None, **how)["loss"])(params, example)
    assert tokens[place].nats == pytest.approx(float(loss.total), rel=1e-5)


@pytest.mark.parametrize(
    "text", ["A [MASK] is here.", "A [MASK], or two.", "[MASK] is", "is [MASK]"]
)
def test_what_is_around_a_gap_is_encoded_as_without_it(tokenizer, text):
    ids = tokenizer.encode_gaps(text, scoring.MASK)
    assert ids.count(tokenizer.vocab.mask) == 1
    place = ids.index(tokenizer.vocab.mask)
    before, after = text.split("[MASK]")
    assert tokenizer.decode(ids[:place]) == before.rstrip()
    # The tokens behind the gap are those that follow a word in an ordinary text.
    assert ids[place + 1 :] == tokenizer.encode("is" + after)[len(tokenizer.encode("is")) :]


@pytest.mark.parametrize("after", ["s and", "s", " ", "\n", " \nThe", "\n\nThe", "!"])
def test_nothing_is_put_in_behind_a_gap_and_nothing_left_out(tokenizer, after):
    before, vocab = tokenizer.encode("The"), tokenizer.vocab
    ids = tokenizer.encode_gaps(f"The [MASK]{after}", scoring.MASK)
    assert ids[: len(before) + 1] == [*before, vocab.mask]
    assert tokenizer.decode(before + ids[len(before) + 1 :]) == f"The{after}"
    again = tokenizer.encode_gaps(f"The [MASK]{after}  [MASK]", scoring.MASK)
    assert tokenizer.decode(before + again[len(before) + 1 : -1]) == f"The{after.rstrip(' ')}"
    assert again[-1] == vocab.mask


@pytest.mark.parametrize("name", ["bert", "sop"])
def test_a_pair_has_the_probability_of_its_loss(model, name):
    objective, params, tokenizer = asked = model(name, model__token_types=2)
    p = scoring.pair_probability(*asked, TEXT, "It has a body.", length=32)
    row = scoring.row_of(objective, tokenizer, TEXT, "It has a body.", length=32)
    vocab = tokenizer.vocab
    a, b = (tokenizer.encode(text) for text in (TEXT, "It has a body."))
    assert row.ids.tolist() == [vocab.cls, *a, vocab.sep, *b, vocab.sep]
    assert row.types.tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    ids = row.ids[None]
    example = Example(
        ids, np.ones_like(ids), np.arange(ids.shape[1], dtype=np.int32)[None],
        np.zeros((1, 0), np.int32), None, np.zeros((1, 0)), types=row.types[None],
        extra={"label": np.zeros(1, np.int32), "label_weight": np.ones(1, np.float32)},
    )  # fmt: skip

    @jax.jit
    def sums_of(params, example):
        return objective.pair_sums(params, objective.encode(params, example, None), example)

    sums = sums_of(params, example)
    assert -np.log(p) == pytest.approx(float(sums["pair_loss"].total), rel=1e-5)


def test_similarity_is_that_of_the_vectors_of_the_loss(model):
    objective, params, tokenizer = asked = model("simcse", objective__projection=False)
    vocab, other = tokenizer.vocab, TEXT[::-1]
    found = scoring.similarity(*asked, TEXT, other, length=32)
    assert scoring.similarity(*asked, TEXT, TEXT, length=32) == pytest.approx(1, abs=1e-5)
    rows = [[vocab.cls, *tokenizer.encode(text), vocab.sep] for text in (TEXT, other)]
    size = max(map(len, rows))
    ids = np.array([row + [vocab.pad] * (size - len(row)) for row in rows], np.int32)
    segments = np.array([[1] * len(row) + [0] * (size - len(row)) for row in rows], np.int32)
    places = np.broadcast_to(np.arange(size, dtype=np.int32), ids.shape)
    views = Views(ids[None], segments[None], places[None], np.ones(1, np.float32))
    a, b = np.asarray(jax.jit(lambda *given: objective.vectors(*given, None))(params, views))[0]
    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert found == pytest.approx(expected, abs=1e-5)


def test_from_the_command_line(tokenizer, tmp_path, capsys):
    run = f"--workdir={make_run(tmp_path / 'run', tokenizer, 'base', 'mlm', layers=1)}"
    assert main(["score", run, "The [MASK] statement is [MASK].", "--top=2"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if line.startswith("gap")] == ["gap 1", "gap 2"] and len(out) == 6
    assert main(["score", run, TEXT]) == 0
    assert "given all others" in capsys.readouterr().out
    for texts, message in (
        ([TEXT, TEXT], "a run of mlm has nothing to say of two texts"),
        ([TEXT * 20], f"the model was trained on rows of {LENGTH}: shorten it"),
        ([""], "there is no text to score"),
        (["  "], "there is no text to score"),
        ([TEXT] * 3, "one text or two, not 3"),
    ):
        assert main(["score", run, *texts]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    with pytest.raises(UserError, match="holds no run"):
        from jaxpretrain.score import score

        score(tmp_path, [TEXT])
