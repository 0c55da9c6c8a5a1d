"""Hugging Face folders as runs: written by hand here, or by our own export; never by PyTorch."""

import contextlib
import io
import json
import shutil
from functools import partial

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from jaxpretrain import import_model as import_module
from jaxpretrain.assemble import build
from jaxpretrain.data.tokenizer_hf import FastTokenizer
from jaxpretrain.errors import UserError
from jaxpretrain.evaluation.scoring import row_of
from jaxpretrain.export import export
from jaxpretrain.import_model import import_model, sections
from jaxpretrain.interop.folder import Tensors, write_model
from jaxpretrain.interop.huggingface import export_model, settings
from jaxpretrain.interop.origin import Origin
from jaxpretrain.main import main
from jaxpretrain.models.config import TransformerConfig
from jaxpretrain.models.presets import PRESETS
from jaxpretrain.models.transformer import Backbone
from jaxpretrain.pretrained import load
from jaxpretrain.reopen import opened
from jaxpretrain.workdir import claim_workdir, read_json
from support.hf_tokenizers import byte_level, wordpiece_vocabulary
from support.made_run import make_run
from support.small import at_random
from support.tiny_run import tokenizer_of

TEXT = "The quick brown [MASK] jumps over the lazy dog."
SIZES = {"width": 24, "layers": 2, "heads": 4, "mlp_width": 30, "max_length": 40}
SIZES |= {"vocab_size": 531}


def write_folder(folder, family, **sizes):
    """A model at random with a padded vocabulary; its config and its tensors."""
    folder.mkdir()
    config = TransformerConfig(**PRESETS[family] | SIZES | sizes)
    params = at_random(jax.eval_shape(Backbone(config).init, jax.random.key(0)), spread=0.3)
    written, tensors = export_model(family, config, params)
    write_model(folder, written, tensors)
    (wordpiece_vocabulary if family == "bert" else byte_level)(folder)
    return written, tensors


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "bert"
    return folder, *write_folder(folder, "bert")


@contextlib.contextmanager
def one_device():
    """On several, Orbax cuts the arrays of an import into slices, each a program to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module, "build", partial(build, devices=jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def imported(bert, tmp_path_factory):
    """The command for the run of it, and what it said."""
    run = tmp_path_factory.mktemp("imported") / "run"
    command = ["import", f"--model={bert[0]}", f"--workdir={run}"]
    with one_device(), contextlib.redirect_stdout(io.StringIO()) as said:
        assert main([*command, "--config.model.dropout=0.2"]) == 0
    return run, command, said.getvalue()


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "gpt2"
    write_folder(folder, "gpt2", layers=1)
    return folder


@pytest.fixture
def copied(bert, tmp_path):
    """A copy of the folder, without its weights, and those."""
    folder, config, tensors = bert
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    return copy, config, tensors


def test_a_run_of_a_model_scores_as_the_model(bert, imported, capsys):
    folder, (run, _, said) = bert[0], imported
    assert "run: bert with " in said and "parameters, to train with mlm" in said
    assert main(["score", f"--workdir={run}", TEXT, "--top=3"]) == 0
    of_run = capsys.readouterr().out.splitlines()
    assert main(["score", f"--model={folder}", TEXT, "--top=3"]) == 0
    loss, *of_model = capsys.readouterr().out.splitlines()
    assert loss.startswith("loss ") and of_model[1:] == of_run[1:] and len(of_run) == 4
    [candidates] = load(folder).gaps(TEXT, top=3)
    assert of_run[1].strip() == f"{candidates[0][1]:.1%}  {candidates[0][0]}"


def test_an_imported_model_trains_on(gpt2, tiny_config_file, tmp_path, capsys):
    """From its own weights: they are the first checkpoint, and the run goes on from there."""
    run = tmp_path / "run"
    command = [f"--config={tiny_config_file}", "--config.objective.name=clm"]
    command += [f"--config.store.path={tmp_path}/store", "--config.train.steps=4"]
    assert main(["import", f"--model={gpt2}", f"--workdir={run}", *command]) == 0
    own = f"--config={run}/config.json"
    before = opened(run, "latest")
    assert before.step == 0 and before.config.model.width == 24
    assert read_json(run / "run.json")["token store"] == "open"
    assert main(["prepare", own]) == 0
    assert main(["train", own, f"--workdir={run}"]) == 0
    after = opened(run, "latest")
    assert after.step == 4
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before.params, after.params)
    assert 0 < max(jax.tree.leaves(moved)) <= 4 * 0.0101  # four steps of Adam at 0.01
    assert len(read_json(run / "run.json")["token store"]) == 64
    capsys.readouterr()
    assert main(["evaluate", f"--workdir={run}"]) == 0
    assert "unigram" in capsys.readouterr().out
    # And back, with its own tokenizer.
    export(run, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "# run: gpt2, imported from gpt2, trained further with clm\n" in card
    assert "It began from the weights of gpt2.\n" in card and "| Steps | 4 |" in card
    before = json.loads((gpt2 / "tokenizer.json").read_text())
    assert json.loads((tmp_path / "out/tokenizer.json").read_text()) == before
    assert load(tmp_path / "out").loss("The future of AI is") != load(gpt2).loss(
        "The future of AI is"
    )


def test_an_export_of_what_was_only_imported_claims_no_training(bert, imported, tmp_path):
    export(imported[0], tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "# run: bert, imported from bert\n" in card
    assert "None here: these are the weights of bert.\n" in card
    assert "pretrained with" not in card and "| Steps" not in card and "- mlm" not in card
    written = json.loads((tmp_path / "out/config.json").read_text())
    vocab = FastTokenizer.from_folder(bert[0]).vocab
    assert (written["cls_token_id"], written["sep_token_id"]) == (vocab.cls, vocab.sep)


def test_what_a_folder_says_beside_the_model_is_exported_again(gpt2, tmp_path, capsys):
    """Several ends of a text, none for padding, and how texts are given to the model."""
    folder = shutil.copytree(gpt2, tmp_path / "gpt2")

    def add(name, more):
        path = folder / name
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(before | more))

    add("config.json", {"eos_token_id": [500, 3], "bos_token_id": 500})
    add("generation_config.json", {"eos_token_id": [500, 3], "temperature": 0.6})
    templates = [{"name": "default", "template": "{{ messages }}"}]
    said = {"chat_template": templates, "padding_side": "left", "model_max_length": 77}
    add("tokenizer_config.json", said)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with one_device():
        import_model(folder, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written["eos_token_id"] == [500, 3] and written["pad_token_id"] is None
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation == {"eos_token_id": [500, 3], "temperature": 0.6}
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ messages }}"
    config = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert {key: config[key] for key in said} == said
    # What only stands in for a role is not named for it: padding would never be learned there.
    named = {key: value for key, value in config.items() if key.endswith("_token")}
    assert named == {f"{role}_token": "<|endoftext|>" for role in ("bos", "eos", "unk")}
    add("config.json", {"decoder_start_token_id": 4})
    assert main(["import", f"--model={folder}", f"--workdir={tmp_path}/other"]) == 2
    assert "decoder_start_token_id is 4 in " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_tokenizer_gives_types_to_models_that_read_them(name, bert, gpt2, imported, tmp_path):
    run = imported[0]
    if name == "gpt2":
        run = tmp_path / "run"
        with one_device():
            import_model(gpt2, run)
    export(run, tmp_path / "out")
    inputs = json.loads((tmp_path / "out/tokenizer_config.json").read_text())["model_input_names"]
    assert inputs == ["input_ids", *["token_type_ids"] * (name == "bert"), "attention_mask"]


def test_vectors_are_of_texts_enclosed_as_in_the_training(gpt2, tmp_path):
    """GPT-2's own tokenizer encloses nothing; the objective puts its end on both sides."""
    objective = {"objective.name": "crops", "objective.pooling": "last"}
    with one_device():
        import_model(gpt2, tmp_path / "run", overrides=objective)
    export(tmp_path / "run", tmp_path / "out")
    run = opened(tmp_path / "run", "latest")
    text = "The future of AI"
    theirs = Tokenizer.from_file(str(tmp_path / "out/tokenizer.json")).encode(text).ids
    assert theirs == list(row_of(run.objective, run.tokenizer, text, length=16).ids)
    assert len(theirs) == len(run.tokenizer.encode(text)) + 2


@pytest.mark.parametrize(
    ("family", "loader", "name"),
    [
        ("bert", "BertForPreTraining", "bert"),
        ("bert", "BertForNextSentencePrediction", "nsp"),
        ("bert", "BertForMaskedLM", "mlm"),
        ("bert", None, "mlm"),
        ("electra", "ElectraForPreTraining", "rtd"),
        ("gpt2", "GPT2LMHeadModel", "clm"),
        ("t5", "T5ForConditionalGeneration", "span_corruption"),
        ("t5", "T5WithLMHeadModel", "span_corruption"),
    ],
)
def test_the_objective_is_that_of_the_model_s_class(family, loader, name, tmp_path):
    more = {"decoder_layers": 2} if family == "t5" else {}
    theirs = settings(family, TransformerConfig(**PRESETS[family] | SIZES | more))
    theirs |= {"architectures": [loader]} if loader else {}
    assert sections(theirs, tmp_path, None, {})["objective"]["name"] == name


@pytest.fixture(scope="module")
def electra(tiny_config_file, tmp_path_factory):
    """A run of ELECTRA with a generator of half the width, and its export."""
    folder = tmp_path_factory.mktemp("electra")
    objective = {"name": "rtd", "generator_size": 0.5}
    make_run(folder / "run", tokenizer_of(tiny_config_file), "electra", objective)
    export(folder / "run", folder / "out")
    return folder


@one_device()
def test_electra_is_imported_with_its_generator(electra, tmp_path, capsys):
    first = opened(electra / "run", "latest")
    del first.params["head"]
    moved = shutil.copytree(electra / "out", tmp_path / "out")
    apart = shutil.move(moved / "generator", tmp_path / "small")
    import_model(moved, tmp_path / "run", generator=apart)
    assert "not in the model" not in capsys.readouterr().out
    again = opened(tmp_path / "run", "latest")
    del again.params["head"]  # which the discriminator has no use for
    assert again.objective.generator.config.width == first.objective.generator.config.width
    jax.tree.map(np.testing.assert_array_equal, again.params, first.params)
    text = "Two\n\nlines, and a [MASK]."
    ids = first.tokenizer.encode_gaps(text, "[MASK]")
    assert again.tokenizer.encode_gaps(text, "[MASK]") == ids
    # What is missing starts anew.
    import_model(moved, tmp_path / "alone", overrides={"objective.generator_size": "0.5"})
    assert "not in the model, and so untrained: generator\n" in capsys.readouterr().out


def test_generators_of_other_models(electra, tmp_path, capsys):
    def refused(message, generator, **overrides):
        with pytest.raises(UserError, match=message):
            import_model(
                electra / "out", tmp_path / "run", generator=generator, overrides=overrides
            )

    own = electra / "out/generator"
    refused("is a part of rtd, and the objective is mlm", own, **{"objective.name": "mlm"})
    refused(
        r"generator_size=0.25: it has hidden_size \d+ \(not \d+\)",
        None,  # that beside the model
        **{"objective.generator_size": "0.25"},
    )
    whole = {"objective.generator_size": "1.0"}
    refused("has no head: it must be an ElectraForMaskedLM", electra / "out", **whole)
    other = shutil.copytree(own, tmp_path / "other")
    read = Tensors(own)
    changed = {name: read[name] for name in read}
    changed["electra.embeddings.word_embeddings.weight"] += 0.1
    save_file(changed, other / "model.safetensors")
    refused("has other embeddings of tokens than the model", other)
    command = ["import", f"--model={electra}/out", f"--workdir={tmp_path}/run"]
    assert main([*command, f"--generator={tmp_path}/none"]) == 2
    assert "it has no config.json" in capsys.readouterr().err


def test_shards_in_16_bits(copied):
    folder, _, tensors = copied
    half = {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()}
    where = {}
    for number, name in enumerate(sorted(half)):
        where[name] = f"model-{number % 3 + 1}-of-3.safetensors"
    for file in set(where.values()):
        save_file({n: half[n] for n, f in where.items() if f == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    read = Tensors(folder, "bert.")
    for name, value in half.items():
        np.testing.assert_array_equal(read[name], value.astype(np.float32))
    (folder / "model-2-of-3.safetensors").unlink()
    with pytest.raises(UserError, match="incomplete: model-2-of-3.safetensors of its index"):
        Tensors(folder)


def test_a_tensor_that_is_no_number_by_itself_is_refused(copied):
    folder, _, tensors = copied
    name = "bert.pooler.dense.bias" if "bert.pooler.dense.bias" in tensors else min(tensors)
    save_file(tensors | {name: tensors[name].astype(np.int8)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"the tensor {name} is of the type I8: only F64, F32"):
        load(folder)


def test_names_of_older_and_of_bare_models(copied, bert):
    folder, _, tensors = copied
    bare = {}
    for name, value in tensors.items():
        name = name.removeprefix("bert.")
        if "LayerNorm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        bare[name] = value
    save_file(bare, folder / "model.safetensors")
    assert load(folder).gaps(TEXT) == load(bert[0]).gaps(TEXT)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "pytorch_model.bin").touch(), "pickle, which can run any code"),
        (lambda folder: None, "has no weights: neither model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("["), "config.json is damaged"),
    ],
)
def test_folders_that_are_no_models(copied, spoil, message):
    spoil(copied[0])
    with pytest.raises(UserError, match=message):
        load(copied[0])


def test_what_the_user_cannot_have(bert, imported, tmp_path, capsys):
    folder, (run, command, _) = bert[0], imported
    new = ["import", f"--model={folder}", f"--workdir={tmp_path}/run"]
    assert main([*new, "--config.model.width=8"]) == 2
    assert "config.model.width is the imported model's own" in capsys.readouterr().err
    assert read_json(run / "config.json")["model"]["dropout"] == 0.2
    assert main(command) == 2
    assert "holds a run already" in capsys.readouterr().err
    for wrong, message in (
        ([], "a --workdir of a run, or a --model, and not both"),
        ([f"--model={folder}", "more"], "asked about one text, not 2"),
        ([f"--model={folder}/none"], "it has no config.json"),
    ):
        assert main(["score", *wrong, "A text."]) == 2
        assert message in capsys.readouterr().err


def test_a_model_that_is_to_see_otherwise_than_it_did(bert, imported, tmp_path, capsys):
    assert "warning" not in imported[2]
    with one_device():
        import_model(bert[0], tmp_path / "run", overrides={"objective.name": "clm"})
    warning = "warning: in a bert attention is full, and under clm it is causal"
    assert warning in capsys.readouterr().out


def test_parts_that_were_drawn_at_random_are_not_exported_as_the_models(copied, tmp_path, capsys):
    folder, _, tensors = copied
    body = {name: value for name, value in tensors.items() if name.startswith("bert.")}
    save_file(body | {"classifier.weight": np.zeros((2, 24))}, folder / "model.safetensors")
    with one_device():
        import_model(folder, tmp_path / "run")
    said = capsys.readouterr().out
    assert "not in the model, and so untrained: head\n" in said
    assert "in the model, and not used here: classifier\n" in said
    export(tmp_path / "run", tmp_path / "out")
    assert f"{tmp_path}/out: BertModel, " in capsys.readouterr().out
    assert not any(name.startswith("cls.") for name in Tensors(tmp_path / "out"))
    assert "pipeline_tag" not in (tmp_path / "out/README.md").read_text()
    assert main(["score", f"--workdir={tmp_path}/run", TEXT]) == 2
    assert "without head, which would answer at random: train first" in capsys.readouterr().err
    with pytest.raises(UserError, match="no part that predicts tokens"):
        load(folder)


def test_a_model_in_the_hubs_cache_has_its_name(tmp_path):
    folder = tmp_path / "models--some--model/snapshots/0123abc"
    folder.mkdir(parents=True)
    assert Origin.of(folder, {}).folder == "some/model"
    assert Origin.of(folder.parent, {}).folder == "snapshots"
    (tmp_path / "imported.json").write_text('{"from": "x"}')
    with pytest.raises(UserError, match="imported.json is damaged: import the model again"):
        Origin.load(tmp_path)


def test_gaps_and_losses_that_there_are_not(bert, gpt2):
    with pytest.raises(UserError, match=r"there is no \[MASK\] in 'x'"):
        load(bert[0]).gaps("x")
    with pytest.raises(UserError, match="has 403 tokens, and the model reads 40"):
        load(bert[0]).loss("a " * 401)
    causal = load(gpt2)
    with pytest.raises(UserError, match="no mask piece to stand for"):
        causal.loss(TEXT)
    with pytest.raises(UserError, match="does not see what follows"):
        causal.gaps(TEXT)
    with pytest.raises(UserError, match="is one token, and nothing is before it"):
        causal.loss("T")
    with pytest.raises(UserError, match="there is no text"):
        causal.loss("")


def test_an_import_that_was_cut_off_is_not_trained_from_random_weights(bert, imported, tmp_path):
    shutil.copytree(imported[0], tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    config, tokenizer = read_json(tmp_path / "run/config.json"), FastTokenizer.from_folder(bert[0])
    identity = {"tokenizer": tokenizer.sha256, "token store": "b" * 64}
    with pytest.raises(UserError, match="the import was cut off; delete the folder"):
        claim_workdir(tmp_path / "run", config, tokenizer, identity)
