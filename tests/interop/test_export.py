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
from jaxpretrain.interop.families import FAMILIES
from jaxpretrain.interop.huggingface import export_model, import_model, settings, switches
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
        ("t5", {"attention_dropout": 0.2}, "attention_dropout is 0.2.*dropout_rate.*is 0.1"),
        ("t5", {"tied_embeddings": True}, "tied_embeddings is True"),
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
        unused |= field.name == "rotary_base" and changed.positions != "rotary"
        unused |= field.name == "max_length" and changed.positions == "relative"
        unused |= field.name == "init_scale" and name == "t5"
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
    assert switches(newer) == switches(written)
    with pytest.raises(UserError, match="tie_word_embeddings is True"):
        switches(newer | {"scale_decoder_outputs": True})


def test_paths_of_nested_dicts():
    assert dict(flat({"a": {"b": 1, "c": {"d": 2}}, "e": 3})) == {"a/b": 1, "a/c/d": 2, "e": 3}
