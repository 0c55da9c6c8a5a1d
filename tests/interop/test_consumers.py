"""Exported models in the hands of the libraries that people use, beside our own numbers; and the
other way round, checkpoints that `transformers` saved, beside its numbers."""

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxpretrain.evaluation import scoring
from jaxpretrain.evaluation.scoring_spans import spans
from jaxpretrain.export import export
from jaxpretrain.import_model import import_model
from jaxpretrain.interop.huggingface import class_of
from jaxpretrain.objectives.contrastive import pool
from jaxpretrain.pretrained import load
from jaxpretrain.reopen import opened
from jaxpretrain.types import Source
from support import hf_tokenizers as folders
from support.made_run import make_run
from support.tiny_run import tokenizer_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
GAP = "The quick brown [MASK] jumps over the lazy dog."
START = "The future of AI is"
RUNS = {
    "bert": ("bert", "bert", {}),
    "modernbert": ("modernbert", "mlm", {}),
    "electra": ("electra", "rtd", {"embedding_width": 12}),
    "gpt2": ("gpt2", "clm", {}),
    "llama": ("llama", "clm", {"kv_heads": 2, "tied_embeddings": False}),
    "t5": ("t5", "span_corruption", {"decoder_layers": 1}),
    "cls": ("bert", "simcse", {}),
    "mean": ("bert", "crops", {}),
}


@pytest.fixture(scope="module")
def exported(tiny_config_file, tmp_path_factory):
    """Gives a run and the folder that it was exported to, by a name of `RUNS`; each made once."""
    tokenizer, made = tokenizer_of(tiny_config_file), {}

    def give(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            preset, objective, model = RUNS[name]
            make_run(folder / "run", tokenizer, preset, objective, **model)
            export(folder / "run", folder / "out")
            made[name] = opened(folder / "run", "latest"), str(folder / "out")
        return made[name]

    return give


@pytest.mark.parametrize("name", RUNS)
def test_every_tensor_finds_its_place(name, exported):
    _, folder = exported(name)
    for part in (folder, f"{folder}/generator") if name == "electra" else (folder,):
        with open(f"{part}/config.json") as file:
            [loader] = json.load(file)["architectures"]
        model, info = getattr(transformers, loader).from_pretrained(part, output_loading_info=True)
        # Only a contrastive run without a projection has nothing for BERT's pooler.
        pooler = {"pooler.dense.weight", "pooler.dense.bias"} if name == "mean" else set()
        assert (
            set(info["missing_keys"]) == pooler
            and not info["unexpected_keys"]
            and not info["mismatched_keys"]
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(part)
        assert model.config.eos_token_id == tokenizer.eos_token_id
        assert model.config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_fill_mask(name, exported):
    run, folder = exported(name)
    [ours] = scoring.gaps(run.objective, run.params, run.tokenizer, GAP, length=40, top=4)
    theirs = transformers.pipeline("fill-mask", model=folder)(GAP, top_k=4)
    for (_, p), found in zip(ours, theirs, strict=True):
        assert found["score"] == pytest.approx(p, abs=TOLERANCE)
    assert theirs[0]["sequence"].startswith("The quick brown")
    assert run.tokenizer.words([theirs[0]["token"]]) == [ours[0][0]]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_text_generation(name, exported):
    """Greedy, token by token, as our own scores have it."""
    run, folder = exported(name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    generate = transformers.pipeline("text-generation", model=folder)
    [found] = generate(START, max_new_tokens=6, do_sample=False, return_tensors=True)
    ids = tokenizer(START).input_ids
    assert ids == [run.tokenizer.vocab.bos, *run.tokenizer.encode(START)]
    for _ in range(6):
        ids.append(int(np.argmax(logits_of(run, ids)[len(ids) - 1])))
        if ids[-1] == run.tokenizer.vocab.eos:
            break
    assert found["generated_token_ids"] == ids


def test_an_encoder_and_decoder(exported):
    """T5's head of its own is not tied when it is loaded, and its decoder begins with padding."""
    run, folder = exported("t5")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder)
    assert model.config.decoder_start_token_id == run.tokenizer.vocab.pad
    given = tokenizer("The <extra_id_0> of AI", return_tensors="pt")
    ids, vocab = given.input_ids.tolist()[0], run.tokenizer.vocab
    gaps = run.tokenizer.encode_gaps("The [MASK] of AI", "[MASK]")
    assert ids == [vocab.sentinels[0] if i == vocab.mask else i for i in gaps] + [vocab.eos]
    wanted = np.array([[vocab.pad, vocab.sentinels[0], 200, 201, vocab.eos]])
    with torch.no_grad():
        found = model(**given, decoder_input_ids=torch.tensor(wanted)).logits
    places = [np.arange(len(row[0]))[None] for row in (ids_of(ids), wanted)]
    source = Source(ids_of(ids), np.ones((1, len(ids)), np.int32), places[0])
    backbone, ones = run.objective.backbone, np.ones_like(wanted)

    @jax.jit
    def scores(params):
        hidden = backbone.encode(
            params, wanted, ones, places[1], visibility="causal", source=source
        )
        return backbone.logits(params, hidden)

    with jax.default_matmul_precision("highest"):
        ours = scores(run.params)
    np.testing.assert_allclose(ours, found, rtol=0, atol=TOLERANCE)
    # And what it writes into the gap is what their `generate` does, up to where a gap ends.
    [span] = spans(run.objective, run.params, run.tokenizer, "The [MASK] of AI", length=40)
    begun = torch.tensor(wanted[:, :2])
    written = model.generate(**given, decoder_input_ids=begun, max_new_tokens=8, do_sample=False)
    written = written[0, 2:].tolist()
    ends = [n for n, i in enumerate(written) if i in (*vocab.sentinels, vocab.eos)]
    assert run.tokenizer.decode(written[: min(ends, default=8)]).strip() == span.text
    best = found[0, 1].softmax(-1).topk(5).values
    np.testing.assert_allclose([p for _, p in span.first], best, rtol=0, atol=TOLERANCE)


def test_tokens_that_do_not_belong_there(exported):
    run, folder = exported("electra")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = tokenizer(START, return_tensors="pt")
    with torch.no_grad():
        found = transformers.ElectraForPreTraining.from_pretrained(folder)(**given).logits
    asked = run.objective, run.params, run.tokenizer, START
    pieces, p = zip(*scoring.replaced_tokens(*asked, length=40), strict=True)
    assert list(pieces) == run.tokenizer.pieces(given.input_ids[0, 1:-1].tolist())
    assert np.ptp(p) > 1e-3
    np.testing.assert_allclose(p, found[0, 1:-1].sigmoid(), rtol=0, atol=TOLERANCE)


def test_feature_extraction(exported):
    run, folder = exported("bert")
    found = np.array(transformers.pipeline("feature-extraction", model=folder)(START)[0])
    row = scoring.row_of(run.objective, run.tokenizer, START, length=40)
    rows = scoring.padded([row], run.tokenizer.vocab.pad)
    ours = jax.jit(lambda p: scoring.stream(run.objective, p, rows))(run.params)
    np.testing.assert_allclose(found, ours[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["cls", "mean"])
def test_sentence_transformers(name, exported):
    library = pytest.importorskip("sentence_transformers")
    run, folder = exported(name)
    texts = ["One text.", "Another,\n\nand a longer one."]
    found = library.SentenceTransformer(folder, device="cpu").encode(texts)
    each = [scoring.row_of(run.objective, run.tokenizer, text, length=40) for text in texts]
    rows = scoring.padded(each, run.tokenizer.vocab.pad)

    @jax.jit
    def vectors(params):
        hidden = scoring.stream(run.objective, params, rows)
        pooled = pool(hidden, rows.segments, run.objective.pooling)
        return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)

    np.testing.assert_allclose(found, vectors(run.params), rtol=0, atol=TOLERANCE)
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_lm_eval(exported, tmp_path):
    """A local task of two choices: its log-likelihoods are ours."""
    lm_eval, tasks = (pytest.importorskip(name) for name in ("lm_eval", "lm_eval.tasks"))
    run, folder = exported("llama")
    items = [
        {"question": "The sky is", "choices": ["blue", "a number"], "label": 0},
        {"question": "A list has", "choices": ["the sun", "items in it"], "label": 1},
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    task = {
        "task": "choices",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "items.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "choices.yaml").write_text(json.dumps(task))
    manager = tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={folder},dtype=float32",
        tasks=["choices"],
        task_manager=manager,
        device="cpu",
        bootstrap_iters=0,
    )
    tokenizer, right = transformers.AutoTokenizer.from_pretrained(folder), 0
    samples = sorted(found["samples"]["choices"], key=lambda sample: sample["doc_id"])
    for item, sample in zip(items, samples, strict=True):
        start = len(tokenizer(item["question"]).input_ids)
        sums = []
        for choice, [[theirs, _]] in zip(item["choices"], sample["resps"], strict=True):
            ids = tokenizer(f"{item['question']} {choice}").input_ids
            logs = log_softmax(logits_of(run, ids), axis=-1)
            sums.append(sum(float(logs[at - 1, ids[at]]) for at in range(start, len(ids))))
            assert theirs == pytest.approx(sums[-1], abs=TOLERANCE)
        right += int(np.argmax(sums)) == item["label"]
    assert found["results"]["choices"]["acc,none"] == right / 2


@pytest.mark.parametrize("family", ["bert", "electra", "gpt2", "llama"])
def test_the_snippets_on_a_checkpoint_that_transformers_saved(family, tmp_path, capsys):
    """In shards, with ``labels=input_ids`` and the padding of the vocabulary as it is."""
    masked = family in ("bert", "electra")
    (folders.wordpiece_vocabulary if masked else folders.byte_level)(tmp_path / "model")
    reader = transformers.BertTokenizer if masked else transformers.AutoTokenizer
    tokenizer = reader.from_pretrained(tmp_path / "model")
    sizes = {"vocab_size": 531, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"hidden_size": 24, "intermediate_size": 30, "initializer_range": 0.3}
    sizes |= {"max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1}
    sizes |= {"eos_token_id": 1}
    if family == "llama":
        sizes |= {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "default"}}
        sizes["rope_parameters"]["rope_theta"] = 5000.0
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[family](**sizes)
    loader = getattr(transformers, class_of(family, {"head"})[0])
    model = loader(config).eval()
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert (tmp_path / "model/model.safetensors.index.json").exists()
    text = GAP if masked else START
    given = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        found = model(**given, labels=given["input_ids"])
    ours = load(tmp_path / "model")
    assert ours.loss(text) == pytest.approx(found.loss.item(), abs=TOLERANCE)
    scores = ours.logits(given["input_ids"][0].tolist())
    np.testing.assert_allclose(scores, found.logits[0], rtol=0, atol=TOLERANCE)
    if masked:
        at = given["input_ids"][0] == tokenizer.mask_token_id
        top = found.logits[0][at][0].softmax(-1).topk(5)
        [candidates] = ours.gaps(text)
        np.testing.assert_allclose([p for _, p in candidates], top.values, rtol=0, atol=TOLERANCE)
    if family in ("bert", "gpt2"):  # the others' runs are the same code's
        return
    import_model(tmp_path / "model", tmp_path / "run")
    assert "untrained" not in capsys.readouterr().out
    run = opened(tmp_path / "run", "latest")
    assert run.objective.visibility == ours.visibility
    kept = {"dtype": "float32", "scan_layers": ours.backbone.config.scan_layers}
    assert replace(run.objective.backbone.config, **kept) == ours.backbone.config
    for name, group in ours.params.items():
        jax.tree.map(np.testing.assert_array_equal, run.params[name], group)


def ids_of(ids):
    return np.array([ids], np.int32)


def logits_of(run, ids):
    """A causal run's scores of a text's ids, which padding at the end does not change."""
    row = ids_of(np.pad(ids, (0, 24 - len(ids))))
    return np.asarray(causal_scores(run.objective.backbone)(run.params, row))[0]


@functools.cache
def causal_scores(backbone):
    @jax.jit
    def scores(params, row):
        ones, positions = jnp.ones_like(row), jnp.arange(row.shape[1])[None]
        with jax.default_matmul_precision("highest"):
            hidden = backbone.encode(params, row, ones, positions, visibility="causal")
            return backbone.logits(params, hidden)

    return scores
