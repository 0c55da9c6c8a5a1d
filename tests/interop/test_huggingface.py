"""The BERT and GPT-2 presets against `transformers`, by references of ``make_hf_reference.py``."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpretrain.errors import UserError
from jaxpretrain.interop.huggingface import import_model
from jaxpretrain.models.transformer import Backbone

FILES = Path(__file__).parents[1] / "data_hf"
# float32 rounding of transformers itself against float64 is up to 1.3e-5 in these files.
TOLERANCE = 1e-4


def load(name):
    reference = dict(np.load(FILES / f"{name}.npz"))
    tensors = {
        key.removeprefix("params/"): value.astype(np.float32)
        for key, value in reference.items()
        if key.startswith("params/")
    }
    config, params = import_model(json.loads(str(reference["config"])), tensors)
    return reference, tensors, Backbone(config), params


def positions(inputs):
    return np.broadcast_to(np.arange(inputs.shape[1], dtype=np.int32), inputs.shape)


@pytest.mark.parametrize("types", [None, "token_type_ids"])
def test_bert_logits(types):
    reference, _, backbone, params = load("bert")
    inputs, real = reference["input_ids"], reference["attention_mask"].astype(np.int32)
    with jax.default_matmul_precision("highest"):
        hidden = backbone.encode(
            params,
            inputs,
            real,
            positions(inputs),
            visibility="full",
            types=None if types is None else reference[types],
        )
        logits = np.asarray(backbone.logits(params, hidden))
    expected = reference["logits" if types is None else "logits_mixed_types"]
    np.testing.assert_allclose(logits[real == 1], expected[real == 1], rtol=0, atol=TOLERANCE)


def test_gpt2_logits():
    reference, _, backbone, params = load("gpt2")
    inputs = reference["input_ids"]
    with jax.default_matmul_precision("highest"):
        hidden = backbone.encode(
            params, inputs, np.ones_like(inputs), positions(inputs), visibility="causal"
        )
        logits = np.asarray(backbone.logits(params, hidden))
    np.testing.assert_allclose(logits, reference["logits"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_every_tensor_is_used_and_every_parameter_filled(name):
    _, tensors, backbone, params = load(name)
    abstract = jax.eval_shape(backbone.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, abstract)
    ours = sum(leaf.size for leaf in jax.tree.leaves(params))
    tied = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "lm_head.weight")
    assert ours == sum(value.size for key, value in tensors.items() if key not in tied)
    # BERT's key bias cancels in the softmax, so the logits do not show whether it is right.
    if name == "bert":
        np.testing.assert_array_equal(
            params["stack"]["blocks"]["attention"]["key"]["bias"][1].ravel(),
            tensors["bert.encoder.layer.1.attention.self.key.bias"],
        )


def test_what_cannot_be_imported_is_refused_by_name():
    with pytest.raises(UserError, match="'roberta'"):
        import_model({"model_type": "roberta"}, {})
    with pytest.raises(UserError, match="hidden_act is 'relu'"):
        import_model({"model_type": "bert", "hidden_act": "relu"}, {})
