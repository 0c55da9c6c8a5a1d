"""The loss over the vocabulary in blocks, against its definition in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.models.vocabulary import Vocabulary, sample, token_loss

ROWS, SLOTS, WIDTH, VOCAB = 3, 7, 5, 11


def made(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(ROWS, SLOTS, WIDTH)).astype(dtype)
    table = rng.normal(size=(VOCAB, WIDTH)).astype(np.float32)
    bias = rng.normal(size=VOCAB).astype(np.float32)
    targets = rng.integers(0, VOCAB, (ROWS, SLOTS)).astype(np.int32)
    weights = rng.choice([0.0, 1.0, 0.25, 3.0], (ROWS, SLOTS)).astype(np.float32)
    return vectors, table, bias, targets, weights


def definition(vectors, table, bias, targets, factors):
    """Nats, hits, and the gradients of ``sum(nats * factors)``, in float64."""
    vectors, table, bias, factors = (x.astype(np.float64) for x in (vectors, table, bias, factors))
    logits = vectors @ table.T + bias
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    hot = np.eye(len(table))[targets]
    nats = -np.log((probabilities * hot).sum(-1))
    pull = (probabilities - hot) * factors[..., None]
    gradients = (
        pull @ table,
        np.einsum("rsv,rse->ve", pull, vectors),
        pull.sum((0, 1)),
    )
    return nats, logits.argmax(-1) == targets, gradients


@pytest.mark.parametrize("form", ["table", "kernel"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("block", [0, 1, 4, 7, 21, 1000])
def test_total_and_its_gradient(block, with_bias, form):
    vectors, table, bias, targets, weights = made()
    bias = bias if with_bias else np.zeros_like(bias)
    nats, hits, gradients = definition(vectors, table, bias, targets, 2.5 * weights)

    @jax.jit
    def both(vectors, table, bias):
        def loss(vectors, table, bias):
            matrix = {"table": table} if form == "table" else {"kernel": table.T}
            vocabulary = Vocabulary(**matrix, bias=bias if with_bias else None)
            found = token_loss(vectors, vocabulary, targets, weights, block=block)
            return 2.5 * found.total, found

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(vectors, table, bias)

    (total, found), pulled = both(vectors, table, bias)
    np.testing.assert_allclose(total, np.sum(2.5 * weights * nats), rtol=1e-6)
    np.testing.assert_allclose(found.nats, nats, rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(found.hits, hits)
    for ours, exact in zip(pulled[: 2 + with_bias], gradients, strict=False):
        np.testing.assert_allclose(ours, exact, rtol=1e-6, atol=4e-6)


@pytest.mark.parametrize("block", [0, 4, 1000])
def test_nats_that_carry_the_gradient(block):
    """Every target may then be pulled at with a factor of its own."""
    vectors, table, bias, targets, weights = made(1)
    factors = np.random.default_rng(2).normal(size=targets.shape).astype(np.float32)
    nats, _, gradients = definition(vectors, table, bias, targets, factors)

    @jax.jit
    def pulled(vectors, table, bias):
        def loss(vectors, table, bias):
            found = token_loss(
                vectors, Vocabulary(table, bias=bias), targets, weights, block=block, each=True
            )
            return jnp.sum(found.nats * factors)

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(vectors, table, bias)

    total, ours = pulled(vectors, table, bias)
    np.testing.assert_allclose(total, np.sum(factors * nats), rtol=1e-5)
    for found, exact in zip(ours, gradients, strict=True):
        np.testing.assert_allclose(found, exact, rtol=1e-6, atol=4e-6)


def test_only_what_says_so_carries_a_gradient():
    """So that no loss can be built on what would have no effect, unnoticed, in one of the two."""
    vectors, table, bias, targets, weights = made()

    def pulled(what, each):
        def loss(vectors):
            found = token_loss(
                vectors, Vocabulary(table, bias=bias), targets, weights, block=4, each=each
            )
            return jnp.sum(getattr(found, what))

        return float(jnp.abs(jax.jit(jax.grad(loss))(vectors)).max())

    assert pulled("total", each=False) > 0.1 and pulled("nats", each=True) > 0.1
    assert pulled("nats", each=False) == pulled("total", each=True) == 0


def test_sixteen_bits():
    """Products of bfloat16, everything else in float32."""
    vectors, table, bias, targets, weights = made(3)
    vectors, table = (np.asarray(jnp.bfloat16(x), np.float32) for x in (vectors, table))
    nats, _, gradients = definition(vectors, table, bias, targets, weights)

    @jax.jit
    def both(vectors, table):
        def loss(vectors, table):
            found = token_loss(vectors, Vocabulary(table, bias=bias), targets, weights, block=4)
            return found.total, found.nats

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(vectors, table)

    (total, ours), pulled = both(jnp.bfloat16(vectors), table)
    np.testing.assert_allclose(ours, nats, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total, np.sum(nats * weights), rtol=1e-5)
    assert pulled[0].dtype == jnp.bfloat16 and pulled[1].dtype == jnp.float32
    for found, exact in zip(pulled, gradients, strict=False):
        # The pull at the scores, at most 3, is rounded to 8 bits of precision before the products.
        np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=0, atol=0.05)


def test_scores_far_from_zero_do_not_overflow():
    vectors, table, bias, targets, weights = made(4)
    bias = bias + np.float32(3e4)
    exact, _, _ = definition(vectors, table, bias, targets, weights)
    found = jax.jit(
        lambda: token_loss(vectors, Vocabulary(table, bias=bias), targets, weights, block=4)
    )()
    np.testing.assert_allclose(found.nats, exact, rtol=0, atol=0.01)  # 3e4 has steps of 0.002


@pytest.mark.parametrize("each", [False, True])
def test_the_scores_of_all_tokens_are_never_there_at_once(each):
    rows, slots, width, vocab, block = 8, 32, 4, 1031, 16
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(rows, slots, width)).astype(np.float32)
    table = rng.normal(size=(vocab, width)).astype(np.float32)
    targets, weights = np.zeros((rows, slots), np.int32), np.ones((rows, slots), np.float32)

    def loss(vectors, table, block):
        found = token_loss(vectors, Vocabulary(table), targets, weights, block=block, each=each)
        return jnp.sum(found.nats) if each else found.total

    def tokens_at_once(block):
        program = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
        text = program.lower(vectors, table, block).compile().as_text()
        shapes = re.findall(r"f32\[([\d,]+)\]", text)
        sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in shapes]
        # The table has `width` per token of the vocabulary; everything else of that size is scores.
        return max(size for size in sizes if size % vocab == 0) // vocab

    assert tokens_at_once(block) == block
    assert tokens_at_once(0) == rows * slots


@pytest.mark.parametrize(("block", "width"), [(0, 4), (3, 4), (1000, 128)])
def test_drawn_tokens_are_where_the_distribution_function_says(block, width):
    """Against a search in the cumulative sums, in float64."""
    vectors, table, bias, _, _ = made(5)
    uniform = np.random.default_rng(6).random((ROWS, SLOTS)).astype(np.float32)
    vocabulary = Vocabulary(table, bias=bias)
    drawn = np.asarray(
        jax.jit(lambda: sample(vectors, vocabulary, uniform, block=block, width=width))()
    )
    logits = vectors.astype(np.float64) @ table.T + bias
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    upto = np.cumsum(odds, -1) / odds.sum(-1, keepdims=True)
    np.testing.assert_array_equal(drawn, (upto <= uniform[..., None]).sum(-1))


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-24])
def test_what_has_no_chance_is_never_drawn(uniform):
    """At the edges, where a sum that is rounded could go one too far."""
    rng = np.random.default_rng(7)
    possible = rng.random((50, 300)) < 0.02
    possible[:, 7] = True
    logits = np.where(possible, rng.normal(size=possible.shape), -1e9).astype(np.float32)
    table = logits.T  # so that vectors of one are their scores
    vectors = np.eye(50, dtype=np.float32)[:, None]
    numbers = np.full((50, 1), uniform, np.float32)
    drawn = jax.jit(lambda: sample(vectors, Vocabulary(table), numbers, block=0))()
    assert possible[np.arange(50), np.asarray(drawn)[:, 0]].all()


def test_drawn_tokens_have_their_probabilities():
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.0625, 0.0625]))
    vectors = np.ones((200, 100, 1), np.float32)
    vocabulary = Vocabulary(logits[:, None].astype(np.float32))
    uniform = jax.random.uniform(jax.random.key(0), (200, 100))
    drawn = jax.jit(lambda: sample(vectors, vocabulary, uniform, block=64, width=2))()
    share = np.bincount(np.asarray(drawn).ravel(), minlength=5) / 20_000
    expected = np.exp(logits)
    assert (np.abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / 20_000)).all()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of XLA's products on a CPU")
@pytest.mark.parametrize("block", [4, 21])
@pytest.mark.parametrize("form", ["table", "kernel"])
def test_no_product_turns_its_left_side_on_a_cpu(form, block):
    """The gradient of a matrix would; XLA has no fast product there that does."""
    vectors, table, _, targets, weights = made()
    matrix = table if form == "table" else table.T

    def total(vectors, matrix):
        vocabulary = Vocabulary(**{form: matrix})
        return token_loss(vectors, vocabulary, targets, weights, block=block).total

    program = jax.jit(jax.grad(total, argnums=(0, 1))).lower(vectors, matrix).compile()
    summed = re.findall(r" dot\(.*lhs_contracting_dims=\{(\d)\}", program.as_text())
    assert summed and set(summed) == {"1"}
