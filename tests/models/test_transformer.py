import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from flax import nnx

from jaxpretrain.errors import UserError
from jaxpretrain.models.attention import (
    Sight,
    add_to_rows,
    attention,
    relative_buckets,
    rotary_frequencies,
    rotate,
    visibility_mask,
)
from jaxpretrain.models.config import TransformerConfig
from jaxpretrain.models.layers import ACTIVATIONS, FeedForward
from jaxpretrain.models.presets import PRESETS
from jaxpretrain.models.transformer import Backbone
from support.small import SPECIAL, small_backbone, small_batch, small_vocab

VOCAB = small_vocab()
BATCH = small_batch(0, VOCAB, rows=6, length=24)
# float32 rounding of a few hundred operations on values of order 1.
ROUNDING = 2e-5


def hidden(backbone, params, batch=BATCH, visibility="full", **more):
    encode = jax.jit(backbone.encode, static_argnames="visibility")
    return np.asarray(
        encode(params, batch.tokens, batch.segments, batch.positions, visibility=visibility, **more)
    )


def backbone_shapes(backbone):
    return jax.eval_shape(backbone.init, jax.random.key(0))


def made(**switches):
    """A backbone, and parameters like initial ones, without compiling how these are drawn."""
    backbone, rng = small_backbone(VOCAB, **switches), np.random.default_rng(0)

    def draw(path, leaf):
        return np.float32((path[-1].key == "scale") + 0.02 * rng.normal(size=leaf.shape))

    return backbone, jax.tree.map_with_path(draw, backbone_shapes(backbone))


@pytest.fixture(scope="module")
def model():
    return made()


def test_mask_is_the_formula():
    rng = np.random.default_rng(0)
    segments = np.sort(rng.integers(0, 3, (4, 9)), axis=1)[:, ::-1].copy()
    prefix = rng.integers(0, 10, 4)
    for visibility in ("causal", "full", "prefix"):
        mask = np.asarray(visibility_mask(segments, prefix, visibility))
        edge = {"causal": np.zeros(4), "full": np.full(4, 9), "prefix": prefix}[visibility]
        for b in range(4):
            for q in range(9):
                for k in range(9):
                    expected = segments[b, q] == segments[b, k] and (k <= q or k < edge[b])
                    assert mask[b, 0, q, k] == expected


@pytest.mark.parametrize("positions", ["learned", "rotary", "relative", "none"])
def test_causal_outputs_do_not_move_with_later_tokens(positions):
    backbone, params = made(positions=positions)
    before = hidden(backbone, params, visibility="causal")
    for place in (5, 12, 23):
        changed = BATCH.tokens.copy()
        changed[:, place] = SPECIAL + (changed[:, place] + 7) % 40
        after = hidden(backbone, params, BATCH._replace(tokens=changed), "causal")
        np.testing.assert_array_equal(before[:, :place], after[:, :place])
        assert np.abs(before[:, place] - after[:, place]).max() > 1e-3


@pytest.mark.parametrize("visibility", ["full", "causal"])
def test_documents_in_a_row_do_not_see_each_other(model, visibility):
    before = hidden(*model, visibility=visibility)
    row = next(r for r in range(6) if BATCH.segments[r].max() >= 2)
    inside = BATCH.segments[row] == 2
    changed = BATCH.tokens.copy()
    changed[row, inside] = SPECIAL + 1
    after = hidden(*model, BATCH._replace(tokens=changed), visibility)
    np.testing.assert_array_equal(before[row][~inside], after[row][~inside])
    assert np.abs(before[row][inside] - after[row][inside]).max() > 1e-3


def test_full_visibility_sees_both_sides_and_prefix_up_to_its_end(model):
    batch, changed = changed_at_10()
    moved = np.abs(hidden(*model, batch) - hidden(*model, changed)).max(-1)
    assert (moved > 1e-6).all()
    for edge, first in ((11, 0), (10, 10)):
        prefix = jnp.full(6, edge)
        a = hidden(*model, batch, "prefix", prefix=prefix)
        b = hidden(*model, changed, "prefix", prefix=prefix)
        moved = np.abs(a - b).max(-1)
        assert (moved[:, first:] > 1e-6).all() and (moved[:, :first] == 0).all()


def test_padding_has_no_influence(model):
    row = 2
    real = int((BATCH.segments[row] > 0).sum())
    assert real < 24
    short = jax.tree.map(lambda x: x[row : row + 1, :real] if x.ndim == 2 else x, BATCH)
    # Another length sums in another order.
    np.testing.assert_allclose(
        hidden(*model)[row, :real], hidden(*model, short)[0], rtol=0, atol=ROUNDING
    )


def test_scanned_unrolled_and_rematerialised_layers_agree():
    keys = jax.random.split(jax.random.key(3), 6)
    results = []
    # Three layers of which the second is local: a loop takes two at once, and one is left.
    switches = {"layers": 3, "local_window": 2, "global_every": 2, "dropout": 0.1}
    _, params = made(**switches)
    for scan, how in (("off", "none"), ("on", "dots"), ("off", "full")):
        backbone = small_backbone(VOCAB, scan_layers=scan, remat=how, **switches)

        def loss(params, backbone=backbone):
            y = backbone.encode(
                params,
                BATCH.tokens,
                BATCH.segments,
                BATCH.positions,
                visibility="causal",
                keys=keys,
            )
            return jnp.mean(jnp.square(backbone.logits(params, y)))

        results.append(jax.jit(jax.value_and_grad(loss))(params))
    for other in results[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), results[0], other
        )


@pytest.mark.parametrize(("scan_layers", "visibility"), [("on", "full"), ("off", "causal")])
def test_local_layers_see_no_further_than_their_window(scan_layers, visibility):
    """Layers 0, 2 and 4 are whole; without them, influence goes as far as two windows."""
    switches = {"layers": 5, "local_window": 2, "global_every": 2, "scan_layers": scan_layers}
    backbone, params = made(**switches)
    moved = influence(backbone, params, visibility)
    if visibility == "full":
        assert (moved > 1e-7).all()
    else:
        assert (moved[10:] > 1e-7).all() and (moved[:10] == 0).all()
    # Whole layers that add nothing to the stream leave the local ones.
    for part in ("attention", "mlp"):
        end = "output" if part == "attention" else "down"
        params["stack"]["blocks"][part][end]["kernel"][::2] = 0.0
    moved = influence(backbone, params, visibility)
    inside = np.abs(np.arange(24) - 10) <= 2 * 2  # layers 1 and 3
    if visibility == "causal":
        inside &= np.arange(24) >= 10
    np.testing.assert_array_equal(moved > 0, inside)


def influence(backbone, params, visibility):
    """How much each place of rows of one document moves with the token at place 10."""
    before, after = (hidden(backbone, params, batch, visibility) for batch in changed_at_10())
    return np.abs(before - after).max((0, 2))


def changed_at_10():
    """Rows of one document each, and the same with another token at place 10."""
    batch = small_batch(0, VOCAB, rows=6, length=24, padding=False, view="document")
    changed = batch.tokens.copy()
    changed[:, 10] = SPECIAL + (changed[:, 10] + 7) % 40
    return batch, batch._replace(tokens=changed)


def test_grouped_heads_equal_full_heads_with_repeated_keys():
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 7, 6, 8)).astype(np.float32)
    key, value = rng.normal(size=(2, 2, 7, 2, 8)).astype(np.float32)
    mask = visibility_mask(np.ones((2, 7), int), None, "causal")
    out = attention(query, key, value, sight=Sight(mask), scale=0.3)
    key, value = (np.repeat(x, 3, axis=2).astype(np.float64) for x in (key, value))
    scores = np.einsum("btnh,bsnh->bnts", query.astype(np.float64), key) * 0.3
    scores = np.where(np.asarray(mask), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bnts,bsnh->btnh", p / p.sum(-1, keepdims=True), value)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    # The path with dropout keys, at a rate that drops next to nothing, is the same function.
    keys = jax.random.split(jax.random.key(0), 2)
    plain = attention(
        query, key[:, :, ::3].astype(np.float32), value[:, :, ::3].astype(np.float32),
        sight=Sight(mask), scale=0.3, dropout=1e-9, dropout_keys=keys,
    )  # fmt: skip
    np.testing.assert_allclose(plain, expected, atol=1e-5)


def test_rotary_scores_depend_on_the_distance_only():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 1, 1, 16)).astype(np.float32)
    config = TransformerConfig(width=16, heads=1, rotary_base=7.0, local_rotary_base=100.0)
    frequencies = rotary_frequencies(config, local=True)

    def score(i, j):
        a, b = (rotate(x, jnp.array([[at]]), frequencies) for x, at in ((q, i), (k, j)))
        return float(jnp.sum(a * b))

    assert score(3, 1) == pytest.approx(score(40, 38), abs=1e-4)
    assert abs(score(3, 1) - score(1, 3)) > 1e-2
    # Pair i turns by base ** (-i / half) a position: the closed form for one head.
    angle = 5 * 100.0 ** (-np.arange(8) / 8)
    first, second = np.split(np.asarray(q).ravel(), 2)
    cos, sin = np.cos(angle), np.sin(angle)
    expected = [first * cos - second * sin, second * cos + first * sin]
    found = rotate(q, jnp.array([[5]]), frequencies)
    np.testing.assert_allclose(np.ravel(found), np.ravel(expected), atol=1e-5)


def test_rotary_wavelengths_are_stretched_as_in_llama_3_1():
    """By its definition, wavelength by wavelength."""
    config = TransformerConfig(
        width=64, heads=1, rotary_factor=8.0, rotary_length=512, rotary_low=1.5, rotary_high=4.0
    )
    found = rotary_frequencies(config, local=False)
    kinds = set()
    for pair, frequency in enumerate(found):
        plain = 10_000.0 ** (-pair / 32)
        turns = 512 * plain / (2 * np.pi)
        if turns > 4.0:
            kind, expected = "short", plain
        elif turns < 1.5:
            kind, expected = "long", plain / 8
        else:
            share = (turns - 1.5) / 2.5
            kind, expected = "between", (1 - share) * plain / 8 + share * plain
        kinds.add(kind)
        assert frequency == pytest.approx(expected, rel=1e-6)
    assert kinds == {"short", "long", "between"}


def test_relative_buckets_are_those_of_the_paper():
    # T5: 32 buckets, distance 128. Below 8 each distance has a bucket; from 8 on they grow
    # logarithmically, 8 * 2 ** (i / 2) being the first distance of bucket 8 + i; later keys use
    # the upper 16.
    buckets = np.asarray(relative_buckets(300, 32, 128, two_sided=True))
    edges = [8, 12, 16, 23, 32, 46, 64, 91]
    for distance in range(300):
        near = distance if distance < 8 else 7 + sum(distance >= e for e in edges)
        assert buckets[299, 299 - distance] == near
        assert buckets[0, distance] == (near + 16 if distance else 0)


def test_relative_buckets_of_a_decoder_are_one_sided():
    # T5's decoder: 16 single distances, then 16 * 8 ** (i / 16) up to 128; later keys have none.
    buckets = np.asarray(relative_buckets(300, 32, 128, two_sided=False))
    edges = [16 * 8 ** (i / 16) for i in range(1, 16)]
    for distance in range(300):
        far = 16 + sum(distance >= e - 1e-9 for e in edges)
        assert buckets[299, 299 - distance] == (distance if distance < 16 else far)
        assert buckets[0, distance] == 0


def test_dropout_is_keyed_by_the_row_and_by_nothing_else():
    backbone, params = made(dropout=0.2, attention_dropout=0.2)
    keys = jax.random.split(jax.random.key(1), 6)
    together = hidden(backbone, params, keys=keys)
    half = jax.tree.map(lambda x: x[3:], BATCH)
    apart = hidden(backbone, params, half, keys=keys[3:])
    np.testing.assert_allclose(together[3:], apart, atol=ROUNDING)
    assert np.abs(together - hidden(backbone, params)).max() > 0.1
    other = hidden(backbone, params, keys=jax.random.split(jax.random.key(2), 6))
    assert np.abs(together - other).max() > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gelu_is_its_definition(dtype):
    x = jnp.linspace(-4, 4, 161).astype(dtype)
    exact = np.asarray(x, np.float64) * scipy.stats.norm.cdf(np.asarray(x, np.float64))
    found = np.asarray(jax.jit(ACTIVATIONS["gelu"])(x), np.float64)
    # Absolute, a rounding of 1 in float32; relative, of the result's own type.
    relative = {"float32": 1e-6, "bfloat16": 2**-8}[dtype]
    np.testing.assert_allclose(found, exact, rtol=relative, atol=1e-6)


def test_a_bias_for_all_rows_and_its_gradient():
    rng = np.random.default_rng(0)
    x, bias = rng.normal(size=(5, 2, 3, 4)), rng.normal(size=(1, 2, 3, 4))
    pulled = rng.normal(size=x.shape)
    found, back = jax.vjp(add_to_rows, jnp.float32(x), jnp.float32(bias))
    np.testing.assert_allclose(found, x + bias, rtol=1e-6)
    on_x, on_bias = back(jnp.float32(pulled))
    np.testing.assert_allclose(on_x, pulled, rtol=1e-6)
    np.testing.assert_allclose(on_bias, pulled.sum(0, keepdims=True), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_have_the_published_number_of_parameters(name):
    # Without vocabulary, position and type tables and heads: what the papers' blocks come to.
    config = TransformerConfig(vocab_size=100, **PRESETS[name])
    abstract = backbone_shapes(Backbone(config))
    blocks = sum(leaf.size for leaf in jax.tree.leaves(abstract["stack"]["blocks"]))
    expected = {
        "base": 4 * (12 * 256**2 + 2 * 256),
        "bert": 12 * (12 * 768**2 + 13 * 768),
        "gpt2": 12 * (12 * 768**2 + 13 * 768),
        "llama": 16 * (2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 8192 + 2 * 2048),
        "t5": 12 * (4 * 768**2 + 3 * 768 * 2048 + 2 * 768),  # of the encoder
        "electra": 12 * (12 * 256**2 + 13 * 256),
        "modernbert": 22 * (4 * 768**2 + 3 * 768 * 1152 + 2 * 768),
    }
    assert blocks == expected[name]
    if name == "t5":  # and the decoder's, with cross-attention
        decoder = sum(leaf.size for leaf in jax.tree.leaves(abstract["decoder"]["blocks"]))
        assert decoder == 12 * (8 * 768**2 + 3 * 768 * 2048 + 3 * 768)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    backbone, params = made(dtype="bfloat16")
    shapes = backbone_shapes(backbone)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))

    @jax.jit
    def run(params, tokens, segments, positions):
        y = backbone.encode(params, tokens, segments, positions, visibility="causal")
        return y, backbone.logits(params, y)

    y, logits = run(params, BATCH.tokens, BATCH.segments, BATCH.positions)
    assert y.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    exact = hidden(small_backbone(VOCAB), params, visibility="causal")
    # 8 bits of mantissa: errors of some 2 ** -8 of values of order 1, a few times over.
    np.testing.assert_allclose(np.asarray(y, np.float32), exact, atol=0.06)


@pytest.mark.parametrize(
    ("switches", "numbers"),
    [
        ({"width": 30, "heads": 4}, ("30", "4")),
        ({"heads": 4, "kv_heads": 3}, ("3", "4")),
        ({"width": 12, "heads": 4, "positions": "rotary"}, ("3",)),
        ({"embedding_width": 16, "width": 32}, ("16", "32")),
        ({"dropout": 1.5}, ("1.5",)),
        ({"layers": 0}, ("0",)),
        ({"local_window": 64, "global_every": 1}, ("64", "1")),
        ({"rotary_low": 4.5}, ("4.5", "4.0")),
    ],
)
def test_values_that_do_not_fit_are_named_with_their_numbers(switches, numbers):
    with pytest.raises(UserError) as error:
        TransformerConfig(vocab_size=10, **switches)
    for number in numbers:
        assert number in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("swiglu", lambda x: x / (1 + np.exp(-x))),
        ("geglu", lambda x: x * (1 + scipy.special.erf(x / np.sqrt(2))) / 2),
        ("geglu_tanh", lambda x: x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2),
    ],
)
def test_gated_feed_forward_is_its_formula(activation, function):
    """Shazeer 2020: ``(f(x G) * (x U)) D``, the function on the gate."""
    config = TransformerConfig(
        vocab_size=10, width=6, heads=1, mlp_width=5, activation=activation, biases=False
    )
    layer = FeedForward(config, output_scale=0.5, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(np.float32)
    gate, up, down = (
        np.asarray(part.kernel[...], np.float64) for part in (layer.gate, layer.up, layer.down)
    )
    gate, up = 20 * gate, 20 * up  # away from 0, where the activation is nearly linear
    layer.gate.kernel[...], layer.up.kernel[...] = jnp.float32(gate), jnp.float32(up)
    np.testing.assert_allclose(layer(x), (function(x @ gate) * (x @ up)) @ down, rtol=1e-4)


def test_every_layer_drops_its_own_units():
    """Layers that only add 1: equal masks would leave each unit with nothing or with both."""
    backbone = small_backbone(VOCAB, layers=2, dropout=0.5, biases=True, norm="rmsnorm")
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), backbone_shapes(backbone))
    params["stack"]["blocks"]["mlp"]["down"]["bias"] += 1
    params["stack"]["final_norm"]["scale"] += 1
    y = hidden(backbone, params, keys=jax.random.split(jax.random.key(0), 6))
    for unit in y.reshape(-1, 32)[:20]:
        assert len(np.unique(np.round(unit, 4))) == 3  # 0, 1 or 2 of them, up to the norm
