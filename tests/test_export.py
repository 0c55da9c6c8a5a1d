"""Exports, read back by our own reader and by the kept library for tokenizers."""

import contextlib
import io
import json
import shutil

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
PARTS = {
    "a": {"name": "text", "path": "books/*.txt", "weight": 2.0},
    "b": {"name": "jsonl", "path": "web.jsonl", "weight": 1.0},
}
SOURCES = {"gpt2": {"name": "mixture", "parts": PARTS}}


@pytest.fixture(scope="module")
def tokenizer(tiny_config_file):
    return tokenizer_of(tiny_config_file)


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory):
    """Gives run, export, its folders and what was said, by a name of `CASES`; each made once."""
    made = {}

    def give(case):
        if case not in made:
            folder = tmp_path_factory.mktemp("made")
            preset, objective, model, _ = CASES[case]
            make_run(folder / "run", tokenizer, preset, objective, SOURCES.get(case), **model)
            with contextlib.redirect_stdout(io.StringIO()) as said:
                folders = export(folder / "run", folder / "out")
            made[case] = folder / "run", folder / "out", folders, said.getvalue()
        return made[case]

    return give


@pytest.mark.parametrize("case", CASES)
def test_what_is_exported_comes_back(case, tokenizer, exported):
    preset, objective, _, loader = CASES[case]
    run, out, folders, said = exported(case)
    assert f"{out}: {loader}, " in said
    assert ("without" in said) == (case in LEFT_OUT) and LEFT_OUT.get(case, "") in said
    theirs = read_config(out)
    assert theirs["architectures"] == [loader]
    assert theirs["eos_token_id"] == tokenizer.vocab.eos
    here = opened(run, "latest")
    tensors = Tensors(out, FAMILIES[preset].base)
    back = import_params(theirs, tensors, here.params)
    trained = back.keys()
    assert trained >= {"tokens", "stack"}
    if case in ("bert", "llama"):  # all of it
        assert trained == here.params.keys()
    for name in trained:
        if preset == "modernbert" and name == "stack":
            norm = here.params[name]["blocks"]["attention_norm"]
            norm["scale"] = norm["scale"].at[0].set(1.0)  # the first block has none
        jax.tree.map(np.testing.assert_array_equal, back[name], here.params[name])
    if objective == "rtd":
        assert folders == [out, out / "generator"]
        small = read_config(folders[1])
        assert small["architectures"] == ["ElectraForMaskedLM"] and small["hidden_size"] < 24
        generator = Tensors(folders[1])
        np.testing.assert_array_equal(
            generator["electra.embeddings.word_embeddings.weight"],
            tensors["electra.embeddings.word_embeddings.weight"],
        )
        assert "head" not in trained and "discriminator_head" in trained


def test_the_tokenizer_gives_the_ids_that_the_model_was_trained_on(tokenizer, exported):
    from tokenizers import Tokenizer as Fast

    _, out, _, _ = exported("bert")
    fast = Fast.from_file(str(out / "tokenizer.json"))
    text = "One line.\n\n  Another, indented."
    vocab = tokenizer.vocab
    pair = fast.encode(text, "x")
    assert fast.encode(text).ids == [vocab.cls, *tokenizer.encode(text), vocab.sep]
    assert pair.type_ids[-1] == 1 and pair.ids[-1] == vocab.sep
    config = json.loads((out / "tokenizer_config.json").read_text())
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


def test_the_card_names_the_text(exported):
    _, out, _, _ = exported("gpt2")
    line = "| Data | a: text `books/*.txt` x 2, b: jsonl `web.jsonl` x 1 |"
    assert line in (out / "README.md").read_text().splitlines()


def test_the_card_says_what_the_run_recorded(exported, tmp_path):
    run = shutil.copytree(exported("modernbert")[0], tmp_path / "run")
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


def test_vectors_come_with_their_pooling(exported):
    _, out, _, _ = exported("bert, vectors")
    pooling = json.loads((out / "1_Pooling/config.json").read_text())
    assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_cls_token"]
    assert pooling["word_embedding_dimension"] == 24
    assert [m["path"] for m in json.loads((out / "modules.json").read_text())] == [
        "",
        "1_Pooling",
        "2_Normalize",
    ]
    assert "library_name: sentence-transformers" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("preset", "objective", "model", "message"),
    [
        ("base", "mlm", {}, "preset is 'base', and no Hugging Face model is built so: train with"),
        ("bert", "clm", {}, "attention is causal, and a Hugging Face bert has it full"),
        ("bert", "mlm", {"norm": "rmsnorm"}, "norm is 'rmsnorm'.* bert has 'layernorm'"),
    ],
)
def test_what_has_no_equivalent_is_refused(preset, objective, model, message, tokenizer, tmp_path):
    make_run(tmp_path / "run", tokenizer, preset, objective, **model)
    with pytest.raises(UserError, match=message):
        export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_that_is_refused_writes_nothing(tokenizer, tmp_path):
    """A BERT that was trained as ELECTRA is: the generator is narrower than a BERT can be."""
    make_run(tmp_path / "run", tokenizer, "bert", "rtd")
    with pytest.raises(UserError, match="of the generator: model.embedding_width is "):
        export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(exported, tmp_path, capsys):
    run, _, _, _ = exported("gpt2")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    command = ["export", f"--workdir={run}", f"--out={tmp_path}/out"]
    assert main(command) == 2
    assert "out holds something already: give another --out" in capsys.readouterr().err
    (tmp_path / "out/mine").unlink()
    assert main(command) == 0
