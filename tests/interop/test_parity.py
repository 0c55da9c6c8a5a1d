"""Logits, losses and gradients of every family beside PyTorch `transformers`, on random weights.

Sizes are odd ones: grouped heads, a vocabulary that no tile divides, one layer, one token, padding
on either side. Both sides compute in float32; what they may differ by is its rounding.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.interop.families import FAMILIES
from jaxpretrain.interop.huggingface import (
    class_of,
    export_model,
    import_model,
    import_params,
    read_model,
    switches,
)
from jaxpretrain.interop.tensors import to_theirs
from jaxpretrain.models.config import TransformerConfig
from jaxpretrain.models.heads import classifier, discriminator
from jaxpretrain.models.presets import PRESETS
from jaxpretrain.models.transformer import Backbone
from jaxpretrain.types import Source

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
VOCAB, IGNORED = 131, -100
SMALL = {"vocab_size": VOCAB, "width": 24, "heads": 4, "mlp_width": 36, "dropout": 0.0}
SMALL |= {"attention_dropout": 0.0, "max_length": 16, "dtype": "float32"}
CASES = {
    "bert": ("bert", {"layers": 2}, ("head", "pair_head")),
    "bert, one layer": ("bert", {"layers": 1, "token_types": 3}, ("head",)),
    "electra": ("electra", {"layers": 2, "embedding_width": 10}, ("discriminator_head",)),
    "electra, generator": ("electra", {"layers": 1, "embedding_width": 24}, ("head",)),
    "modernbert": ("modernbert", {"layers": 4, "local_window": 2}, ("head",)),
    "modernbert, all whole": ("modernbert", {"layers": 2, "local_window": 0}, ("head",)),
    "gpt2": ("gpt2", {"layers": 2}, ("head",)),
    "gpt2, untied": ("gpt2", {"layers": 1, "tied_embeddings": False}, ("head",)),
    "bert, untied": ("bert", {"layers": 1, "tied_embeddings": False}, ("head",)),
    "electra, untied": (
        "electra",
        {"layers": 1, "embedding_width": 24, "tied_embeddings": False},
        ("head",),
    ),
    "modernbert, untied": ("modernbert", {"layers": 1, "tied_embeddings": False}, ("head",)),
    "llama, grouped": ("llama", {"layers": 2, "kv_heads": 2, "head_width": 10}, ("head",)),
    "llama, untied": ("llama", {"layers": 1, "kv_heads": 4, "tied_embeddings": False}, ("head",)),
    # Of its three wavelengths one is left as it is, one is stretched and one is in between.
    "llama, scaled": (
        "llama",
        {
            "layers": 1,
            "kv_heads": 4,
            "rotary_factor": 8.0,
            "rotary_length": 90,
            "rotary_base": 300.0,
        },
        ("head",),
    ),
    "t5, tied": (
        "t5",
        {"layers": 1, "decoder_layers": 2, "activation": "relu", "tied_embeddings": True}
        | {"head_scale": 24**-0.5},
        ("head",),
    ),
    "t5": ("t5", {"layers": 2, "decoder_layers": 1, "head_width": 10}, ("head",)),
}
MASKS = {
    "whole": [[1] * 7, [1] * 7],
    "right": [[1] * 7, [1] * 4 + [0] * 3],
    "left": [[1] * 7, [0] * 3 + [1] * 4],
}
ONE_EACH = ("bert", "electra", "modernbert", "gpt2", "llama, grouped", "t5")


class Pair:
    """A model of ours and the same in PyTorch."""

    def __init__(self, case: str):
        self.family, more, self.heads = CASES[case]
        config = TransformerConfig(**PRESETS[self.family] | SMALL | more)
        self.backbone = Backbone(config)
        parts = {"pair_head": classifier(config, 2), "discriminator_head": discriminator(config)}
        self.parts = {name: parts[name] for name in self.heads if name != "head"}
        shapes = {"body": jax.eval_shape(self.backbone.init, jax.random.key(0))}
        shapes |= {n: jax.eval_shape(p.init, jax.random.key(0)) for n, p in self.parts.items()}
        rng = np.random.default_rng(0)

        def some(path, like):
            about = 1.0 if path[-1].key == "scale" else 0.0
            return (about + 0.2 * rng.normal(size=like.shape)).astype(np.float32)

        made = jax.tree_util.tree_map_with_path(some, shapes)
        self.params = made.pop("body") | made
        if "head" not in self.heads:
            del self.params["head"]
        self.settings, tensors = export_model(self.family, config, self.params)
        # Loss, logits and gradients in one program, for rows of all lengths.
        self.run = jax.jit(jax.value_and_grad(self.loss, has_aux=True))
        name, kept = class_of(self.family, self.heads)
        assert set(kept) == set(self.heads)
        values = {k: v for k, v in self.settings.items() if k != "model_type"}
        their_config = transformers.CONFIG_MAPPING[self.family](**values, pad_token_id=0)
        their_config._attn_implementation = "eager"
        self.theirs = getattr(transformers, name)(their_config).eval()
        untied = self.family == "t5" and not config.tied_embeddings
        if untied:  # transformers 5 ties its head all the same
            self.theirs.lm_head = torch.nn.Linear(config.width, VOCAB, bias=False)
        state = {key: torch.tensor(value) for key, value in tensors.items()}
        found = self.theirs.load_state_dict(state, strict=False)
        assert not found.unexpected_keys
        buffers = ("position_ids", "inv_freq")
        tied = set(getattr(self.theirs, "_tied_weights_keys", None) or ())
        unused = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
        missing = {k for k in found.missing_keys if not k.endswith(buffers)} - tied - unused
        assert not missing
        self.theirs.tie_weights() if not untied else None

    def outputs(self, params, inputs, mask, types):
        """Of ours, by the names of theirs."""
        positions = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
        segments, source = mask, None
        if self.family == "t5":
            source = Source(inputs, segments, positions)
            inputs, segments = shifted(inputs), jnp.ones_like(inputs)
        params = params if "head" in params else params | {"head": {}}
        hidden = self.backbone.encode(
            params,
            inputs,
            segments,
            positions,
            visibility=FAMILIES[self.family].sees,
            types=types if self.backbone.config.token_types else None,
            source=source,
        )
        found = {}
        if "head" in self.heads:
            found["logits"] = self.backbone.logits(params, hidden)
        if "pair_head" in self.heads:
            head = self.parts["pair_head"].module(params["pair_head"])
            found["pair"] = head(hidden[:, 0])
        if "discriminator_head" in self.heads:
            head = self.parts["discriminator_head"].module(params["discriminator_head"])
            found["logits"] = head(hidden)
        return found

    def loss(self, params, inputs, mask, types):
        """The mean cross-entropy over the tokens that are no padding, and the outputs."""
        found = self.outputs(params, inputs, mask, types)
        real = jnp.ones_like(mask) if self.family == "t5" else mask
        if "discriminator_head" in self.heads:
            x, y = found["logits"], types
            each = jnp.maximum(x, 0) - x * y + jnp.log1p(jnp.exp(-jnp.abs(x)))
        else:
            logs = jax.nn.log_softmax(found["logits"])
            each = -jnp.take_along_axis(logs, inputs[..., None], axis=-1)[..., 0]
        total = jnp.sum(each * real) / real.sum()
        if "pair" in found:
            total += jnp.mean(jax.nn.logsumexp(found["pair"], axis=-1) - found["pair"][:, 1])
        return total, found

    def their_outputs(self, inputs, mask, types):
        """In PyTorch, with gradients."""
        given = {"input_ids": torch.tensor(inputs), "attention_mask": torch.tensor(mask)}
        if self.backbone.config.token_types:
            given["token_type_ids"] = torch.tensor(types)
        if self.family in ("gpt2", "llama"):
            # By default left padding moves the positions, which ours do not.
            places = torch.arange(inputs.shape[1]).expand(inputs.shape)
            given |= {"position_ids": places, "use_cache": False}
        if self.family == "t5":
            given |= {"decoder_input_ids": torch.tensor(np.asarray(shifted(inputs)))}
        found = self.theirs(**given)
        if "pair_head" in self.heads:
            return {"logits": found.prediction_logits, "pair": found.seq_relationship_logits}
        return {"logits": found.logits}


def shifted(inputs):
    """What T5's decoder reads to predict these."""
    return jnp.concatenate([jnp.zeros_like(inputs[:, :1]), jnp.asarray(inputs)[:, :-1]], axis=1)


def batch(mask):
    rng = np.random.default_rng(1)
    mask = np.array(mask)
    inputs = np.where(mask, rng.integers(1, VOCAB, mask.shape), 0)
    return inputs, mask, rng.integers(0, 2, mask.shape)


@pytest.fixture(scope="module", params=CASES)
def pair(request):
    return Pair(request.param)


@pytest.mark.parametrize("mask", MASKS)
def test_logits(pair, mask):
    inputs, mask, types = batch(MASKS[mask])
    with jax.default_matmul_precision("highest"):
        (_, ours), _ = pair.run(pair.params, inputs, mask, types)
    check_logits(pair, ours, inputs, mask, types)


@pytest.mark.parametrize("pair", ONE_EACH, indirect=True)
def test_logits_of_one_token(pair):
    inputs, mask, types = batch([[1], [1]])
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(pair.outputs)(pair.params, inputs, mask, types)
    check_logits(pair, ours, inputs, mask, types)


def check_logits(pair, ours, inputs, mask, types):
    theirs = pair.their_outputs(inputs, mask, types)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        ours_here, value = np.asarray(ours[name]), value.detach().numpy()
        assert ours_here.shape == value.shape and np.abs(value).max() > 0.1
        # What padding gives is nobody's concern.
        kept = np.ones_like(mask) if pair.family == "t5" else mask
        kept = kept[:, 0] if name == "pair" else kept
        ours_here, value = ours_here[kept == 1], value[kept == 1]
        np.testing.assert_allclose(ours_here, value, rtol=0, atol=TOLERANCE)


def test_what_pytorch_holds_is_imported(pair):
    """Its whole state and its own ``config.json``: every parameter of ours is filled as it was."""
    config, state = pair.theirs.config.to_dict(), pair.theirs.state_dict()
    tensors = {name: value.numpy() for name, value in state.items()}
    back = import_params(config, tensors, pair.params)
    if pair.family == "modernbert":  # whose first block has no norm before attention
        pair.params["stack"]["blocks"]["attention_norm"]["scale"][0] = 1.0
    jax.tree.map(np.testing.assert_array_equal, back, pair.params)
    settled = FAMILIES[pair.family].settled(config, tensors)
    ours, given = switches(settled), pair.backbone.config
    same = ("width", "layers", "heads", "number_of_kv_heads", "size_of_head", "size_of_mlp")
    same += ("size_of_embedding", "decoder_layers", "token_types", "norm_epsilon", "rotary_base")
    same += ("tied_embeddings", "first_norm", "positions", "activation", "dropout", "head_scale")
    same += ("rotary_factor", "rotary_length", "rotary_low", "rotary_high", "local_window")
    same += ("period", "local_rotary_base")
    assert {n: getattr(ours, n) for n in same} == {n: getattr(given, n) for n in same}


def test_a_tied_head_that_does_not_scale(tmp_path):
    """As transformers 5 makes a T5 of what asks for a head of its own, and saves it."""
    sizes = {"d_model": 24, "d_kv": 10, "d_ff": 30, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(**sizes, vocab_size=VOCAB, tie_word_embeddings=False)
    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    settled, tensors = read_model(tmp_path)
    assert "lm_head.weight" not in tensors
    ours, params = import_model(settled, tensors)
    inputs = np.arange(14, dtype=np.int32).reshape(2, 7) * 9 + 1
    ones = np.ones_like(inputs)
    read = torch.tensor(np.asarray(shifted(inputs)))
    with torch.no_grad():
        wanted = theirs(input_ids=torch.tensor(inputs), decoder_input_ids=read).logits
    backbone = Backbone(replace(ours, dtype="float32"))

    @jax.jit
    def logits(params):
        at = jnp.broadcast_to(jnp.arange(7), inputs.shape)
        source = Source(inputs, ones, at)
        hidden = backbone.encode(
            params, shifted(inputs), ones, at, visibility="causal", source=source
        )
        return backbone.logits(params, hidden)

    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(logits(params), wanted, rtol=0, atol=TOLERANCE)


def test_loss_and_gradients(pair):
    inputs, mask, types = batch(MASKS["right"])
    real = np.ones_like(mask) if pair.family == "t5" else mask
    labels = np.where(real, inputs, IGNORED)
    with jax.default_matmul_precision("highest"):
        (value, _), gradients = pair.run(pair.params, inputs, mask, types)
    functional = torch.nn.functional
    found = pair.their_outputs(inputs, mask, types)
    if "discriminator_head" in pair.heads:
        kept = torch.tensor(mask == 1)
        theirs = functional.binary_cross_entropy_with_logits(
            found["logits"][kept], torch.tensor(types)[kept].float()
        )
    else:
        flat = found["logits"].flatten(0, 1)
        theirs = functional.cross_entropy(flat, torch.tensor(labels).flatten())
    if "pair" in found:
        theirs = theirs + functional.cross_entropy(found["pair"], torch.tensor([1, 1]))
    pair.theirs.zero_grad()
    theirs.backward()
    assert float(value) == pytest.approx(theirs.item(), abs=TOLERANCE)
    named = to_theirs(FAMILIES[pair.family].table, gradients)
    parameters = dict(pair.theirs.named_parameters())
    assert len(named) > 8
    twins = dict(FAMILIES[pair.family].twins)
    for name, gradient in named.items():
        theirs = parameters[name].grad
        if theirs is None:  # of two that an untied head has, the other is used
            theirs = parameters[twins[name]].grad
        np.testing.assert_allclose(gradient, theirs.numpy(), rtol=0, atol=TOLERANCE, err_msg=name)
