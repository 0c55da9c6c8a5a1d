"""What holds of every objective: each is in the suite by being in the table.

Each case compiles a handful of functions, which all of its tests use; what can be seen of the
programs without compiling them is in test_contract_programs.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.errors import UserError
from jaxpretrain.objectives import OBJECTIVES
from jaxpretrain.objectives.base import total_loss
from jaxpretrain.sharding import Placement, make_mesh
from jaxpretrain.types import Batch, Example
from support.contract import KEY, LENGTH, PROGRESS, ROWS, VOCAB, Case, cases, named, run
from support.small import SPECIAL

# Sums of some hundred float32 terms of order 1 in another order.
ROUNDING = dict(rtol=2e-5, atol=1e-5)
# Special pieces that may be targets; of an objective that is not here, none may.
SPECIAL_TARGETS = {
    "clm": {VOCAB.eos},
    "mtp": {VOCAB.eos},
    "fim": {VOCAB.fim_suffix, VOCAB.fim_middle, VOCAB.eos},
    "span_corruption": {*VOCAB.sentinels, VOCAB.eos},
    "ul2": {*VOCAB.sentinels, VOCAB.eos},
    "mixture": {VOCAB.eos},
}


@pytest.fixture(scope="module", params=cases())
def case(request):
    return Case(*request.param)


def padding_like(batch: Batch) -> Batch:
    """Rows of padding alone."""
    empty = jax.tree.map(np.zeros_like, batch)
    nowhere = np.full(ROWS, -1, np.int32)
    return empty._replace(row_ids=nowhere, documents=nowhere)


def choose_rows(mask, a, b):
    """Rows of `a` where the mask says so, else of `b`."""
    a, b = jax.device_get((a, b))
    return jax.tree.map(lambda x, y: np.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, y), a, b)


def assert_sums_close(a, b):
    assert a.keys() == b.keys()
    for name in a:
        for x, y in zip(a[name], b[name], strict=True):
            np.testing.assert_allclose(x, y, err_msg=name, **ROUNDING)


def test_pure(case):
    a, b = case.sums(case.batch), case.sums(case.batch)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(a))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    a_held_out, b_held_out = (case.example[False](case.batch, KEY)[0] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, a_held_out, b_held_out)
    other = case.sums(case.batch, key=jax.random.key(8))
    terms = case.objective.coefficients(PROGRESS)
    assert any(a[term].total != other[term].total for term in terms)  # dropout at least


def test_the_terms_have_the_weights_that_were_known_before(case):
    example, keys = case.example[True](case.batch, KEY)
    weights = case.objective.term_weights(example)
    sums = case.loss(case.params, example, keys)
    assert weights.keys() == case.objective.coefficients(PROGRESS).keys()
    for term, weight in weights.items():
        np.testing.assert_allclose(weight, sums[term].weight, rtol=1e-6)
        assert weight > 0


def test_sums_add_up_over_any_split_of_the_rows_and_padding_adds_nothing(case):
    """The rows that are not in a part are those of an example made of padding alone."""
    if case.objective.couples_rows:
        with pytest.raises(UserError, match="microbatches must be 1"):
            case.objective.check_run(length=LENGTH, batch_size=ROWS, microbatches=2)
        return
    example, keys = case.example[True](case.batch, KEY)
    nothing, _ = case.example[True](padding_like(case.batch), KEY)
    whole = case.loss(case.params, example, keys)
    for rows in (slice(0, 3), slice(0, None, 2)):
        inside = np.zeros(ROWS, bool)
        inside[rows] = True
        parts = [
            case.loss(case.params, choose_rows(chosen, example, nothing), keys)
            for chosen in (inside, ~inside)
        ]
        assert_sums_close(whole, jax.tree.map(np.add, *jax.device_get(parts)))


def test_what_stands_at_padded_positions_has_no_influence(case):
    padded = case.batch.segments == 0
    assert padded.any()
    for token in (SPECIAL + 1, VOCAB.mask):
        changed = np.where(padded, token, case.batch.tokens)
        assert_sums_close(case.sums(case.batch), case.sums(case.batch._replace(tokens=changed)))


def test_special_tokens_are_not_corrupted(case):
    batch = case.batch
    for train in (True, False):
        example, _ = case.example[train](batch, KEY)
        if not isinstance(example, Example) or case.objective.token_term is None:
            continue
        used = np.asarray(example.weights) > 0
        targets = np.asarray(example.targets)[used]
        allowed = SPECIAL_TARGETS.get(case.objective.name, set())
        assert set(targets[targets < SPECIAL]) <= allowed
        if example.inputs.shape == batch.tokens.shape:
            special = (batch.tokens < SPECIAL) | (batch.segments == 0)
            np.testing.assert_array_equal(
                np.asarray(example.inputs)[special], batch.tokens[special]
            )


def test_shapes_are_static(case):
    case.objective.check_run(length=LENGTH, batch_size=ROWS)
    for train, make in case.example.items():
        shapes = case.objective.shapes(LENGTH, ROWS, train=train)
        for batch in (case.batch, case.other):
            assert jax.tree.map(jnp.shape, make(batch, KEY)[0]) == jax.tree.map(jnp.shape, shapes)
    case.sums(case.other)
    assert case.example[True]._cache_size() == 1


def test_no_leak_of_what_is_hidden(case):
    """Change a token: at the slots that have it as target, no score may move.

    The key is fixed, so the same positions are hidden. The score is probed by the loss at one slot
    of the changed example with the target of the unchanged one.
    """
    if case.objective.token_term is None:
        return
    row, probed = 0, 0
    example, keys = case.example[False](case.batch, KEY)
    for place in np.flatnonzero(case.batch.segments[row] > 0):
        token = case.batch.tokens[row, place]
        if token < SPECIAL:
            continue
        tokens = case.batch.tokens.copy()
        kind = VOCAB.is_word_start
        tokens[row, place] = next(
            t for t in range(VOCAB.size - 1, 0, -1) if kind[t] == kind[token] and t != token
        )
        changed, _ = case.example[False](case.batch._replace(tokens=tokens), KEY)
        moved = (np.asarray(changed.targets) != example.targets) & (np.asarray(example.weights) > 0)
        for slot in np.flatnonzero(moved[row]):
            probe = np.zeros(example.weights.shape, np.float32)
            probe[row, slot] = 1.0
            before, after = (
                case.loss(case.params, e._replace(weights=probe, targets=example.targets), keys)[
                    case.objective.token_term
                ]
                for e in (example, changed)
            )
            np.testing.assert_array_equal(before.total, after.total)
            assert before.total > 0
            probed += 1
    assert probed >= 2


# What the others have of their own that a mesh could get wrong is in one of these: the masks, the
# pairs and the head of albert, nsp and sop in bert, masked_diffusion in the mixture, and what ul2
# shares with span_corruption in test_sharding, which has four with gradients and on more meshes.
ON_A_MESH = ["span_mlm", "rtd", "mtp", "fim", "prefix_lm", "bert", "crops", "mixture"]


@pytest.mark.parametrize("case", named(*ON_A_MESH), indirect=True)
def test_one_and_eight_devices_agree(case):
    """On a mesh that divides parameters, heads and positions."""
    placement = Placement(make_mesh(data=1, fsdp=2, tensor=2, context=2))

    def placed(params, batch):
        with placement.of_activations():
            return run(case.objective, True, params, batch)

    over_mesh = jax.jit(
        placed,
        in_shardings=(placement.parameters(case.objective.axes(), case.params), placement.batch),
        out_shardings=placement.whole,
    )
    assert_sums_close(case.sums(case.batch), over_mesh(case.params, case.batch))


@pytest.mark.parametrize("case", named("bert"), indirect=True)
def test_compiled_and_eager_agree(case):
    """One that has pairs, masks and a head: eager JAX compiles hundreds of small programs."""
    assert_sums_close(case.sums(case.batch), run(case.objective, True, case.params, case.batch))


def own_losses():
    """The first case of each function that computes a loss, and one with a decoder."""
    found = {}
    for case in cases():
        name, decoder_layers = case.values[0]
        found.setdefault((OBJECTIVES[name].loss, decoder_layers), case)
    return found.values()


@pytest.mark.parametrize("case", own_losses(), indirect=True)
def test_gradients_are_finite_in_bfloat16(case):
    """Of the losses that there are: what they are given is made without this type."""
    dropout = 0.1 if case.objective.name == "simcse" else 0.0  # which cannot do without
    backbone = case.backbone(dropout=dropout, dtype="bfloat16")
    low = dataclasses.replace(case.objective, backbone=backbone)
    example, keys = case.example[True](case.batch, KEY)

    def loss(params):
        sums = low.loss(params, example, keys, train=True, progress=PROGRESS)
        return total_loss(low.coefficients(PROGRESS), sums)

    gradient = jax.device_get(jax.jit(jax.grad(loss))(case.params))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        # Every matrix learns; what moves a bias may cancel.
        assert leaf.ndim < 2 or np.abs(leaf).sum() > 0, path
