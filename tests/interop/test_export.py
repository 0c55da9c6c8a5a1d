"""Every family there and back, and what has no equivalent refused.

That a table puts each number where `transformers` reads it is shown against `transformers` itself:
by the references of ``test_huggingface.py``, and by ``benchmarks.train``, which runs nothing before
both sides have the same loss.
"""

import dataclasses

import jax
import numpy as np
import pytest

from jaxpretrain.data.vocab import blank_vocab
from jaxpretrain.errors import UserError
from jaxpretrain.interop.config_json import settled_t5
from jaxpretrain.interop.families import FAMILIES
from jaxpretrain.interop.huggingface import (
    export_model,
    import_model,
    not_used,
    settings,
    switches,
)
from jaxpretrain.interop.tensors import flat
from jaxpretrain.models.config import TransformerConfig
from jaxpretrain.models.presets import PRESETS
from jaxpretrain.models.transformer import Backbone
from jaxpretrain.objectives import OBJECTIVES

SMALL = {"vocab_size": 37, "width": 24, "layers": 3, "heads": 2, "mlp_width": 20}
ODD = {
    "bert": {"max_length": 9},
    "electra": {"max_length": 9, "embedding_width": 10},
    "gpt2": {"max_length": 9},
    "llama": {"heads": 4, "kv_heads": 2, "head_width": 10, "tied_embeddings": False},
    "modernbert": {"max_length": 9},
    "t5": {"decoder_layers": 2, "head_width": 10},
}


def config_of(name, **more):
    return TransformerConfig(**PRESETS[name] | SMALL | ODD[name] | more)


def random_like(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), tree)


@pytest.mark.parametrize("name", FAMILIES)
def test_export_and_import_are_inverse(name):
    config = config_of(name)
    params = random_like(jax.eval_shape(Backbone(config).init, jax.random.key(0)))
    written, tensors = export_model(name, config, params)
    again, back = import_model(written, tensors)
    assert again == config
    unused = 0
    if name == "modernbert":  # its first layer has no norm before attention
        unused = config.width
        params["stack"]["blocks"]["attention_norm"]["scale"][0] = 1.0
    jax.tree.map(np.testing.assert_array_equal, back, params)
    ours = sum(p.size for p in jax.tree.leaves(params))
    assert sum(t.size for t in tensors.values()) == ours - unused


TIED = [(name, *pair) for name, family in FAMILIES.items() for pair in family.twins]


@pytest.mark.parametrize(("name", "one", "other"), TIED)
def test_a_tied_tensor_has_either_name_and_one_value(name, one, other):
    """As transformers 5 has it, which does not tie what a file has twice, and differently."""
    tied = {"t5": {"head_scale": 24**-0.5, "activation": "relu"}}.get(name, {})
    config = config_of(name, tied_embeddings=True, **tied)
    params = random_like(jax.eval_shape(Backbone(config).init, jax.random.key(0)))
    written, tensors = export_model(name, config, params)
    _, expected = import_model(written, tensors)
    both = tensors | {other: tensors[one]}
    for given in (both, {key: value for key, value in both.items() if key != one}):
        _, found = import_model(written, given)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    message = f"the tensors {one} and {other} are one by the model's config.json, and two"
    with pytest.raises(UserError, match=message):
        import_model(written, tensors | {other: tensors[one] + 1.0})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_head_of_its_own_is_not_taken_for_a_tied_one(name):
    config = config_of(name, tied_embeddings=False)
    params = random_like(jax.eval_shape(Backbone(config).init, jax.random.key(0)))
    written, tensors = export_model(name, config, params)
    assert written["tie_word_embeddings"] is False
    again, found = import_model(written, tensors)
    assert not again.tied_embeddings
    for part in ("head", "tokens"):
        jax.tree.map(np.testing.assert_array_equal, found[part], params[part])


def test_a_model_that_predicts_no_tokens_is_not_called_incomplete():
    config = config_of("bert")
    params = random_like(jax.eval_shape(Backbone(config).init, jax.random.key(0)))
    del params["head"]
    written, tensors = export_model("bert", config, params)
    with pytest.raises(UserError, match="no part that predicts tokens.* no BertForMaskedLM"):
        import_model(written, tensors)


def test_what_is_dropped_in_training_is_no_reason_to_refuse():
    assert settings("t5", config_of("t5", attention_dropout=0.0))["dropout_rate"] == 0.1
    assert settings("llama", config_of("llama", dropout=0.1)) == settings(
        "llama", config_of("llama")
    )


def test_what_is_in_a_file_and_not_used_is_named():
    config = config_of("bert")
    objective = OBJECTIVES["bert"]().bind(Backbone(config), blank_vocab(37))
    params = random_like(jax.eval_shape(objective.init, jax.random.key(0)))
    written, tensors = export_model("bert", config, params)
    more = {"classifier.weight": 0, "bert.embeddings.position_ids": 0}
    more |= {"cls.predictions.decoder.weight": 0}
    del params["pair_head"]
    left = ["bert.pooler.dense", "classifier", "cls.seq_relationship"]
    assert not_used(written, [*tensors, *more], params) == left
    old = {
        name.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma"): value
        for name, value in tensors.items()
    }
    assert not_used(written, old, params) == ["cls.seq_relationship", "pooler.dense"]


def test_a_tied_head_that_does_not_scale_is_one_of_its_own_there():
    """Transformers 4 scales what a tied head reads, whatever else the config says."""
    config = config_of("t5", tied_embeddings=True, head_scale=1.0)
    params = random_like(jax.eval_shape(Backbone(config).init, jax.random.key(0)))
    written, tensors = export_model("t5", config, params)
    assert written["tie_word_embeddings"] is written["scale_decoder_outputs"] is False
    again, back = import_model(written, tensors)
    assert again == dataclasses.replace(config, tied_embeddings=False)
    np.testing.assert_array_equal(back["head"]["kernel"].T, params["tokens"]["embedding"])


def test_the_matrices_are_theirs_seen_from_the_other_side():
    """One number of each kind, followed by hand."""
    config = config_of("llama")
    params = random_like(jax.eval_shape(Backbone(config).init, jax.random.key(0)))
    _, tensors = export_model("llama", config, params)
    blocks = params["stack"]["blocks"]
    query = blocks["attention"]["query"]["kernel"]  # layer, input, head, place in the head
    assert tensors["model.layers.2.self_attn.q_proj.weight"][3 * 10 + 7, 5] == query[2, 5, 3, 7]
    output = blocks["attention"]["output"]["kernel"]  # layer, head, place in the head, output
    assert tensors["model.layers.1.self_attn.o_proj.weight"][5, 3 * 10 + 7] == output[1, 3, 7, 5]
    gate, up = blocks["mlp"]["gate"]["kernel"], blocks["mlp"]["up"]["kernel"]
    assert tensors["model.layers.0.mlp.gate_proj.weight"][11, 4] == gate[0, 4, 11]
    assert tensors["model.layers.0.mlp.up_proj.weight"][11, 4] == up[0, 4, 11]
    assert tensors["lm_head.weight"][30, 4] == params["head"]["kernel"][4, 30]


def test_heads_are_exported_where_the_family_has_them():
    backbone = Backbone(config_of("bert"))
    objective = OBJECTIVES["bert"]().bind(backbone, blank_vocab(37))
    params = random_like(jax.eval_shape(objective.init, jax.random.key(0)))
    _, tensors = export_model("bert", backbone.config, params)
    scores = params["pair_head"]["scores"]["kernel"]
    np.testing.assert_array_equal(tensors["cls.seq_relationship.weight"], scores.T)
    assert "bert.pooler.dense.bias" in tensors


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bert", {"norm_position": "pre"}, "norm_position is 'pre'.* bert has 'post'"),
        ("bert", {"head_width": 8}, "head_width is 8.* bert has 12"),
        ("gpt2", {"kv_heads": 1}, "kv_heads is 1.* gpt2 has 2"),
        ("gpt2", {"activation": "gelu"}, "activation is 'gelu'"),
        ("llama", {"biases": True}, "biases is True"),
        ("t5", {"head_scale": 0.5}, "head_scale is 0.5, .* tied_embeddings=False has 1:"),
        (
            "t5",
            {"tied_embeddings": True, "head_scale": 0.5},
            "head_scale is 0.5, .* tied_embeddings=True has 0.204124 or 1:",
        ),
        ("t5", {"activation": "geglu"}, "activation is 'geglu', .* 'geglu_tanh' or 'relu'"),
        ("modernbert", {"rotary_factor": 2.0}, "rotary_factor is 2.0.* modernbert has 1.0"),
        ("t5", {"decoder_layers": 0}, "decoder_layers is 0"),
        ("bert", {"token_types": 0}, "token_types is 0"),
    ],
)
def test_what_a_family_cannot_be_is_refused(name, change, message):
    with pytest.raises(UserError, match=message):
        settings(name, config_of(name, **change))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_switch_is_lost_silently(name):
    """Whatever switch is changed, it is refused or comes back."""
    other = {
        "norm": "rmsnorm",
        "norm_position": "pre",
        "positions": "none",
        "activation": "relu",
    }
    config = config_of(name)
    for field in dataclasses.fields(TransformerConfig):
        value = getattr(config, field.name)
        if field.name in ("dtype", "attention", "scan_layers", "remat", "vocab_size", "loss_block"):
            continue
        if isinstance(value, bool):
            new = not value
        elif isinstance(value, str):
            new = other[field.name]
            if new == value:
                new = {"rmsnorm": "layernorm", "pre": "post"}[value]
        elif isinstance(value, float):
            new = value * 2 + 0.25 if "dropout" not in field.name else 0.3
        else:
            new = value * 2 + 4
        try:
            changed = dataclasses.replace(config, **{field.name: new})
            written = settings(name, changed)
        except UserError:
            continue
        again = switches(written)
        unused = field.name.startswith("relative") and changed.positions != "relative"
        unused |= field.name.startswith("rotary") and changed.positions != "rotary"
        unused |= field.name in ("rotary_length", "rotary_low", "rotary_high") and (
            changed.rotary_factor == 1.0
        )
        unused |= field.name in ("global_every", "local_rotary_base") and not changed.local_window
        unused |= field.name == "max_length" and changed.positions == "relative"
        unused |= field.name == "init_scale" and name == "t5"
        unused |= "dropout" in field.name
        # One that does not scale is written as a head of its own with the same numbers.
        unused |= field.name == "tied_embeddings" and name == "t5"
        assert unused or getattr(again, field.name) == new, field.name


def test_tensors_that_do_not_fit_are_named():
    config = config_of("gpt2")
    params = random_like(jax.eval_shape(Backbone(config).init, jax.random.key(0)))
    written, tensors = export_model("gpt2", config, params)
    name = "transformer.h.1.mlp.c_fc.weight"
    with pytest.raises(UserError, match=rf"{name} has the shape \(24, 19\).*\(24, 20\)"):
        import_model(written, tensors | {name: tensors[name][:, :19]})
    del tensors[name]
    with pytest.raises(UserError, match=f"no tensor {name}"):
        import_model(written, tensors)


def test_sizes_that_are_absent_are_what_transformers_takes_for_them():
    """By its documentation: ``LlamaConfig`` and ``T5Config``."""
    config = config_of("llama")
    written = settings("llama", config)
    for key in ("tie_word_embeddings", "rms_norm_eps", "num_key_value_heads", "head_dim"):
        del written[key]
    found = switches(written)
    assert not found.tied_embeddings and found.norm_epsilon == 1e-6
    assert found.number_of_kv_heads == 4 and found.size_of_head == 6
    written = settings("t5", config_of("t5", layers=5))
    del written["num_decoder_layers"]
    assert switches(written).decoder_layers == 5
    # As transformers 5 writes a T5 1.1 itself.
    newer = written | {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    assert switches(settled_t5(newer, {"lm_head.weight"})) == switches(written)
    # And where it tied what was not to be scaled.
    found = switches(settled_t5(newer, {"shared.weight"}))
    assert found.tied_embeddings and found.head_scale == 1.0
    # And the first T5, whose oldest files say neither.
    for key in ("tie_word_embeddings", "scale_decoder_outputs", "feed_forward_proj"):
        del written[key]
    for first in (written, newer | {"scale_decoder_outputs": True, "feed_forward_proj": "relu"}):
        found = switches(first)
        assert found.tied_embeddings and found.activation == "relu"
        assert found.head_scale == pytest.approx(24**-0.5)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "llama",
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "are scaled .'linear'",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}},
            "without original_max_position_embeddings, high_freq_factor: it is incomplete",
        ),
        (
            "modernbert",
            {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"] * 2},
            None,
        ),
        (
            "modernbert",
            {"layer_types": ["sliding_attention", "full_attention"]},
            "layer_types is sliding_attention, full_attention .*: only whole layers",
        ),
        ("modernbert", {"rope_scaling": {"type": "yarn"}}, "are scaled .'yarn'"),
        ("modernbert", {"mlp_bias": True}, "mlp_bias is True .* only False can be imported"),
        ("t5", {"feed_forward_proj": "gated-silu"}, "only 'gated-gelu', 'relu' can be imported"),
        ("t5", {"dense_act_fn": "gelu"}, "dense_act_fn is 'gelu' .* only 'gelu_new'"),
        ("t5", {"dense_act_fn": "gelu_new"}, None),
        ("t5", {"num_decoder_layers": 0}, "only a T5 with a decoder"),
        ("t5", {"d_model": "32", "scale_decoder_outputs": True}, "d_model is '32'.*whole number"),
        ("t5", {"d_model": 0, "scale_decoder_outputs": True}, "d_model is 0 .*whole number above"),
        ("t5", {"feed_forward_proj": ["relu"]}, "feed_forward_proj is .*only 'gated-gelu'"),
        ("modernbert", {"local_attention": None}, "local_attention is None .*whole number"),
        ("modernbert", {"global_attn_every_n_layers": "3"}, "is '3' .*whole number above 0"),
        ("llama", {"rope_theta": 7.0}, "rope_theta is 7.0 .*, and [0-9.]+ in its rope_parameters"),
        ("gpt2", {"model_type": None}, "model_type is None .*must be one of bert, electra"),
        ("bert", {"hidden_act": None}, None),
        ("bert", {"hidden_act": "relu"}, "only 'gelu', 'gelu_python' can be imported"),
        ("gpt2", {"activation_function": "gelu_pytorch_tanh"}, None),
        ("modernbert", {"sliding_window": 64}, None),
        ("modernbert", {"sliding_window": 32}, "sliding_window is 32 .* local_attention.* 128:"),
        ("t5", {"feed_forward_proj": "relu", "dense_act_fn": "gelu_new"}, "only 'relu'"),
        ("bert", {"quantization_config": {"quant_method": "fp8"}}, "the model is quantized"),
        ("llama", {"rope_scaling": {"type": "llama3", "factor": 8.0}}, "'llama3'.*only 'default'"),
        ("llama", {"rope_scaling": {"type": "default", "rope_theta": 3.0}}, "contradict each"),
        ("llama", {"rope_scaling": {"type": "default"}}, None),
        ("llama", {"rope_parameters": "linear"}, "rope_parameters is 'linear'.*an object"),
        ("modernbert", {"rope_parameters": ["a"]}, "rope_parameters is .*an object"),
        ("gpt2", {"n_embd": "32"}, "n_embd is '32' .*: it must be int"),
        ("gpt2", {"layer_norm_epsilon": 1}, None),
        ("gpt2", {"layer_norm_epsilon": "1e-5"}, "must be float"),
    ],
)
def test_configs_that_our_backbone_cannot_be(name, change, message):
    written = settings(name, config_of(name)) | change
    if message is None:
        switches(written)
    else:
        with pytest.raises(UserError, match=message):
            switches(written)


def test_modernbert_as_its_first_release_describes_itself():
    """The keys that a file of then has, without the lists of the newer ones."""
    older = {
        "model_type": "modernbert",
        "vocab_size": 50368,
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 22,
        "num_attention_heads": 12,
        "max_position_embeddings": 8192,
        "global_attn_every_n_layers": 3,
        "local_attention": 128,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "hidden_activation": "gelu",
        "classifier_bias": False,
        "norm_eps": 1e-05,
        "norm_bias": False,
        "decoder_bias": True,
    }
    published = TransformerConfig(vocab_size=50368, **PRESETS["modernbert"])
    assert switches(older) == published
    newer = settings("modernbert", published)
    # In transformers 4 a null stands for the base of the other layers.
    assert switches(older | {"local_rope_theta": None}).local_rotary_base == 160_000.0
    del older["local_rope_theta"]
    assert switches(older).local_rotary_base == 10_000.0
    whole = [n for n, kind in enumerate(newer["layer_types"]) if kind == "full_attention"]
    assert whole == [0, 3, 6, 9, 12, 15, 18, 21] and newer["local_attention"] == 128


def test_paths_of_nested_dicts():
    assert dict(flat({"a": {"b": 1, "c": {"d": 2}}, "e": 3})) == {"a/b": 1, "a/c/d": 2, "e": 3}
