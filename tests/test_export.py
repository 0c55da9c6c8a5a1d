"""Exports, read back by our own reader and by the kept library for tokenizers."""

import json

import jax
import numpy as np
import pytest

from jaxpretrain.errors import UserError
from jaxpretrain.export import export
from jaxpretrain.interop.families import FAMILIES
from jaxpretrain.interop.folder import Tensors, read_config
from jaxpretrain.interop.huggingface import import_params
from jaxpretrain.main import main
from jaxpretrain.reopen import opened
from support.made_run import LENGTH, ROWS, STEP, make_run
from support.tiny_run import tokenizer_of

CASES = {
    "bert": ("bert", "bert", {}, "BertForPreTraining"),
    "bert, masked": ("bert", "span_mlm", {}, "BertForMaskedLM"),
    "bert, pairs": ("bert", "sop", {}, "BertForNextSentencePrediction"),
    "bert, vectors": ("bert", "simcse", {}, "BertModel"),
    "modernbert": ("modernbert", "mlm", {}, "ModernBertForMaskedLM"),
    "electra": ("electra", "rtd", {"embedding_width": 12}, "ElectraForPreTraining"),
    "gpt2": ("gpt2", "mtp", {}, "GPT2LMHeadModel"),
    "llama": ("llama", "clm", {"kv_heads": 2}, "LlamaForCausalLM"),
    "t5": ("t5", "span_corruption", {"decoder_layers": 1}, "T5ForConditionalGeneration"),
}
LEFT_OUT = {"bert, masked": "boundary_head", "gpt2": "loss_ahead_1"}


@pytest.fixture(scope="module")
def tokenizer(tiny_config_file):
    return tokenizer_of(tiny_config_file)


@pytest.mark.parametrize("case", CASES)
def test_what_is_exported_comes_back(case, tokenizer, tmp_path, capsys):
    preset, objective, model, loader = CASES[case]
    run = make_run(tmp_path / "run", tokenizer, preset, objective, **model)
    folders = export(run, tmp_path / "out")
    said = capsys.readouterr().out
    assert f"{tmp_path}/out: {loader}, " in said
    assert ("without" in said) == (case in LEFT_OUT) and LEFT_OUT.get(case, "") in said
    theirs = read_config(tmp_path / "out")
    assert theirs["architectures"] == [loader]
    assert theirs["eos_token_id"] == tokenizer.vocab.eos
    here = opened(run, "latest")
    tensors = Tensors(tmp_path / "out", FAMILIES[preset].base)
    back = import_params(theirs, tensors, here.params)
    trained = back.keys()
    assert trained >= {"tokens", "stack"}
    for name in trained:
        if preset == "modernbert" and name == "stack":
            norm = here.params[name]["blocks"]["attention_norm"]
            norm["scale"] = norm["scale"].at[0].set(1.0)  # the first block has none
        jax.tree.map(np.testing.assert_array_equal, back[name], here.params[name])
    if objective == "rtd":
        assert folders == [tmp_path / "out", tmp_path / "out/generator"]
        small = read_config(folders[1])
        assert small["architectures"] == ["ElectraForMaskedLM"] and small["hidden_size"] < 24
        generator = Tensors(folders[1])
        np.testing.assert_array_equal(
            generator["electra.embeddings.word_embeddings.weight"],
            tensors["electra.embeddings.word_embeddings.weight"],
        )
        assert "head" not in trained and "discriminator_head" in trained


def test_the_tokenizer_gives_the_ids_that_the_model_was_trained_on(tokenizer, tmp_path):
    from tokenizers import Tokenizer as Fast

    make_run(tmp_path / "run", tokenizer, "bert", "bert")
    export(tmp_path / "run", tmp_path / "out")
    fast = Fast.from_file(str(tmp_path / "out/tokenizer.json"))
    text = "One line.\n\n  Another, indented."
    vocab = tokenizer.vocab
    pair = fast.encode(text, "x")
    assert fast.encode(text).ids == [vocab.cls, *tokenizer.encode(text), vocab.sep]
    assert pair.type_ids[-1] == 1 and pair.ids[-1] == vocab.sep
    config = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert config["model_max_length"] == LENGTH + 3 and "token_type_ids" in str(config)


def test_of_a_mixture_the_objectives_that_the_family_can_be_count(tokenizer, tmp_path):
    """BERT sees both ways: what the causal task makes of a text is not what it is given."""
    from tokenizers import Tokenizer as Fast

    tasks = {"a": {"name": "clm"}, "b": {"name": "mlm"}}
    both = {
        "name": "mixture",
        "mode": "shared",
        "tasks": {name: {**t, "weight": 1.0} for name, t in tasks.items()},
    }
    make_run(tmp_path / "run", tokenizer, "bert", both)
    export(tmp_path / "run", tmp_path / "out")
    assert read_config(tmp_path / "out")["architectures"] == ["BertForMaskedLM"]
    assert "pipeline_tag: fill-mask" in (tmp_path / "out/README.md").read_text()
    fast = Fast.from_file(str(tmp_path / "out/tokenizer.json"))
    vocab = tokenizer.vocab
    assert fast.encode("x").ids == [vocab.bos, *tokenizer.encode("x"), vocab.eos]


def test_the_card_names_the_text(tokenizer, tmp_path):
    parts = {"a": {"name": "text", "path": "books/*.txt", "weight": 2.0}}
    parts["b"] = {"name": "jsonl", "path": "web.jsonl", "weight": 1.0}
    make_run(tmp_path / "run", tokenizer, "gpt2", "clm", {"name": "mixture", "parts": parts})
    export(tmp_path / "run", tmp_path / "out")
    line = "| Data | a: text `books/*.txt` x 2, b: jsonl `web.jsonl` x 1 |"
    assert line in (tmp_path / "out/README.md").read_text().splitlines()


def test_the_card_says_what_the_run_recorded(tokenizer, tmp_path):
    run = make_run(tmp_path / "run", tokenizer, "bert", "mlm")
    tested = {"split": "test", "step": STEP, "loss": 2.75, "bits_per_hidden_byte": 1.25}
    task = {"metric": "accuracy", "mean": 0.5, "low": 0.25, "high": 0.75}
    (run / "evaluation.json").write_text(json.dumps(tested | {"tasks": {"cola/probe": task}}))
    export(run, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    for line in (
        "library_name: transformers",
        "pipeline_tag: fill-mask",
        "| Objective | mlm |",
        "| `objective.mask_rate` | `0.15` |",
        "| Data | embedded |",
        f"| Tokens | {STEP * ROWS * LENGTH:,} |",
        "| Floating-point operations | 2e+09 |",  # the summary's are of twice the steps
        "| loss (nats), validation | 2.5000 |",
        "| loss (nats), test | 2.7500 |",
        "| bits per hidden byte, test | 1.2500 |",
        "| cola/probe, accuracy | 0.500 (0.250 to 0.750) |",
    ):
        assert line in card.splitlines(), line
    # Numbers of another step, and what was not recorded, are not there.
    (run / "evaluation.json").write_text(json.dumps(tested | {"step": STEP + 1}))
    (run / "summary.json").unlink()
    export(run, tmp_path / "again")
    card = (tmp_path / "again/README.md").read_text()
    assert "2.7" not in card and "held-out" not in card and "Floating" not in card


def test_vectors_come_with_their_pooling(tokenizer, tmp_path):
    run = make_run(tmp_path / "run", tokenizer, "bert", "simcse")
    export(run, tmp_path / "out")
    pooling = json.loads((tmp_path / "out/1_Pooling/config.json").read_text())
    assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_cls_token"]
    assert pooling["word_embedding_dimension"] == 24
    assert [m["path"] for m in json.loads((tmp_path / "out/modules.json").read_text())] == [
        "",
        "1_Pooling",
        "2_Normalize",
    ]
    assert "library_name: sentence-transformers" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    ("preset", "objective", "model", "message"),
    [
        ("base", "mlm", {}, "preset is 'base', and no Hugging Face model is built so: train with"),
        ("llama", "mlm", {"kv_heads": 2}, "attention is full, and .* llama has it causal"),
        ("bert", "clm", {}, "attention is causal, and a Hugging Face bert has it full"),
        ("gpt2", "clm", {"tied_embeddings": False}, "tied_embeddings is False.* gpt2 has True"),
        ("bert", "mlm", {"norm": "rmsnorm"}, "norm is 'rmsnorm'.* bert has 'layernorm'"),
    ],
)
def test_what_has_no_equivalent_is_refused(preset, objective, model, message, tokenizer, tmp_path):
    make_run(tmp_path / "run", tokenizer, preset, objective, **model)
    with pytest.raises(UserError, match=message):
        export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(tokenizer, tmp_path, capsys):
    make_run(tmp_path / "run", tokenizer, "gpt2", "clm")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    command = ["export", f"--workdir={tmp_path}/run", f"--out={tmp_path}/out"]
    assert main(command) == 2
    assert "out holds something already: give another --out" in capsys.readouterr().err
    (tmp_path / "out/mine").unlink()
    assert main(command) == 0
