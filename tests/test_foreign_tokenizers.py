"""Stores, training and evaluation with the tokenizers of Hugging Face checkpoints."""

import json

import numpy as np
import pytest

from jaxpretrain.assemble import assemble, prepare_store
from jaxpretrain.data.prepare import prepare
from jaxpretrain.data.store import Store
from jaxpretrain.data.tasks_rows import Answer, Item
from jaxpretrain.data.tokenizer_load import load_tokenizer
from jaxpretrain.errors import UserError
from jaxpretrain.evaluate import evaluate
from jaxpretrain.evaluation import scoring
from jaxpretrain.evaluation.answers import windows
from jaxpretrain.evaluation.minimal_pairs import sentence_nats
from jaxpretrain.evaluation.samples import sentences
from jaxpretrain.main import main
from jaxpretrain.train import train
from support import hf_tokenizers as folders
from support import tiny_run
from support.small import at_random
from support.tiny_source import Tiny, topics

MAKE = {"mlm": folders.wordpiece, "clm": folders.byte_level}


@pytest.fixture(scope="module", params=list(MAKE))
def run(request, tmp_path_factory):
    """The config of a run with such a tokenizer, its workdir, and the folder of the tokenizer."""
    base = tmp_path_factory.mktemp(request.param)
    folder = MAKE[request.param](base / "checkpoint")
    options = {
        "objective__name": request.param,
        "tokenizer__file": str(folder),
        "data__length": 64,
        "model__dropout": 0.0,
    }
    if request.param == "mlm":
        options["objective__whole_words"] = True
    config = tiny_run.config(tiny_run.write(base), **options)
    prepare_store(config)
    train(config, base / "run")
    return config, base / "run", folder


def test_a_store_has_the_ids_of_the_library_in_frames(run):
    config, _, folder = run
    store = Store.open(config.store.path, verify=True)
    ours = load_tokenizer(folder)
    assert store.tokenizer.sha256 == ours.sha256 == store.manifest["tokenizer_sha256"]
    assert store.manifest["request"]["tokenizer"] == {"file_sha256": ours.sha256}
    texts = {p.read_text() for p in (folder.parent / "texts").glob("*.txt")}
    wanted = sorted([ours.vocab.bos, *ours.encode(text), ours.vocab.eos] for text in texts)
    found = []
    for one in (one for split in ("train", "validation", "test") for one in store.sets(split)):
        stream, starts = one.read(0, one.tokens_total), [0, *one.doc_ends[:-1]]
        found += [stream[a:b].tolist() for a, b in zip(starts, one.doc_ends, strict=True)]
        assert one.vocab_counts.sum() == one.tokens_total
        size = ours.vocab.piece_bytes[stream].sum()
        if ours.keeps_text:
            assert size == one.text_bytes
        elif one.documents:
            assert size == pytest.approx(one.text_bytes, rel=0.25)
    assert sorted(found) == wanted


def test_worker_processes_read_the_same_tokenizer(run, tmp_path):
    _, _, folder = run
    how = {"sources": {"docs": Tiny(texts=topics(3, 12))}, "tokenizer_args": {"file": str(folder)}}
    here = prepare(tmp_path / "here", **how, workers=1, progress=False)
    there = prepare(tmp_path / "there", **how, workers=2, progress=False)
    assert here.manifest["sha256"] == there.manifest["sha256"]


def test_a_run_learns_resumes_and_is_evaluated(run, capsys):
    config, workdir, folder = run
    assert (workdir / "tokenizer.model").read_bytes() == load_tokenizer(folder).model_bytes
    train(config, workdir)  # there is nothing left to do, and it is the same run
    name = config.objective.name
    losses = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in losses if "loss" in line and "learning_rate" in line]
    assert losses[-1] < losses[0] - 0.2
    capsys.readouterr()
    evaluate(workdir, split="validation")
    out = capsys.readouterr().out
    about = "does not keep text" in out
    assert "bits per byte" in out and about == (name == "mlm")
    assert ("hidden words filled in" if name == "mlm" else "sentences continued") in out
    text = "The [MASK] statement is executed." if name == "mlm" else "The statement is executed."
    assert main(["score", f"--workdir={workdir}", text]) == 0
    assert ("gap" if name == "mlm" else "given those before it") in capsys.readouterr().out
    assert main(["replay", f"--workdir={workdir}", "--step=3"]) == 0
    assert ("[MASK]" in capsys.readouterr().out) == (name == "mlm")


def test_sentences_end_where_a_piece_ends_one_or_the_document_ends(run):
    config, _, _ = run
    store = Store.open(config.store.path)
    vocab, tokens = store.tokenizer.vocab, store.sets("train")[0].read(0, 20_000)
    ordinary = ~vocab.is_special[tokens]
    found = sentences(tokens, vocab, shortest=1, longest=20_000)
    assert np.concatenate(found).tolist() == tokens[ordinary].tolist() and len(found) > 50
    text = tokens[ordinary]
    before_special = np.append(~ordinary[1:], True)[ordinary]
    ends = set((np.cumsum([len(one) for one in found]) - 1).tolist())
    for place in range(len(text) - 1):
        assert (place in ends) == (vocab.is_sentence_end[text[place]] or before_special[place])


def test_another_tokenizer_is_another_store(run, tmp_path):
    config, _, folder = run
    other = config.copy_and_resolve_references()
    other.tokenizer.file = str(folders.byte_level(tmp_path / "other", add_prefix_space=True))
    with pytest.raises(UserError, match="was prepared with tokenizer.file_sha256"):
        assemble(other)


def test_answers_are_found_in_windows(run):
    config, _, _ = run
    pieces = assemble(config)
    tokenizer = pieces.store.tokenizer
    context = "The na\u00efve  statement is (executed), \u6f22 a program which names it."
    words = ["na\u00efve", "statement is", "(executed)", "program which names", "it."]
    items = [Item(("is it?", context), (Answer(w, context.index(w)),)) for w in words]
    made = windows(pieces.objective, tokenizer, items, 120)
    for row, word in enumerate(words):
        first, last = made.targets[row]
        low, high = made.begins[row, first], made.ends[row, last]
        assert context.encode()[low:high].decode() == word
    ids = made.rows.ids[0][made.rows.segments[0] > 0].tolist()
    vocab = tokenizer.vocab
    asked, read = tokenizer.encode("is it?"), tokenizer.encode(context)
    assert ids == [vocab.bos, *asked, vocab.eos, *read, vocab.eos]


def test_padding_may_be_a_piece_of_the_row(run):
    """GPT-2's padding is its bos and eos: what is padding is told by the lengths."""
    config, _, _ = run
    pieces = assemble(config)
    objective, tokenizer = pieces.objective, pieces.store.tokenizer
    params = at_random(pieces.abstract.params)
    texts = ["the statement is executed", "a program"]
    how = {"length": config.data.length}
    found = sentence_nats(objective, params, tokenizer, texts, **how)
    of_tokens = scoring.causal_tokens if config.objective.name == "clm" else scoring.masked_tokens
    tokens = of_tokens(objective, params, tokenizer, texts[1], **how)
    assert found[1] == pytest.approx(sum(token.nats for token in tokens), rel=1e-5)
