"""What holds of every objective: each is in the suite by being in the table.

Objectives that take a decoder are here twice, with one and without. Each case compiles a handful of
functions, which all of its tests use.
"""

import dataclasses
import typing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.errors import UserError
from jaxpretrain.objectives import OBJECTIVES
from jaxpretrain.objectives.base import total_loss
from jaxpretrain.objectives.sequence_to_sequence import SequenceToSequence
from jaxpretrain.sharding import Placement, make_mesh
from jaxpretrain.types import Batch, Example, Progress
from support.small import SPECIAL, example_objective, small_backbone, small_batch, small_vocab

VOCAB = small_vocab()
ROWS, LENGTH = 8, 24
KEY = jax.random.key(7)
PROGRESS = Progress(jnp.int32(3), jnp.float32(0.3))
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


def cases():
    for name, cls in OBJECTIVES.items():
        yield pytest.param((name, 0), id=name)
        if issubclass(cls, SequenceToSequence):
            yield pytest.param((name, 1), id=f"{name}-decoder")


class Case:
    """An objective on a tiny model, with its functions compiled."""

    def __init__(self, name: str, decoder_layers: int):
        self.backbone = partial(
            small_backbone,
            VOCAB,
            layers=1,
            width=16,
            heads=2,
            token_types=2,
            decoder_layers=decoder_layers,
            scan_layers="off",
        )
        self.objective = example_objective(name).bind(self.backbone(dropout=0.1), VOCAB)
        self.objective.check_run(length=LENGTH, batch_size=ROWS)
        self.params = self.objective.init(jax.random.key(0))
        view = self.objective.views[0]
        self.batch = small_batch(3, VOCAB, rows=ROWS, length=LENGTH, view=view)
        self.other = small_batch(9, VOCAB, rows=ROWS, length=LENGTH, view=view)
        self.example = {
            train: jax.jit(partial(self.objective.example, train=train, progress=PROGRESS))
            for train in (True, False)
        }
        self.loss = jax.jit(partial(self.objective.loss, train=True, progress=PROGRESS))

    def sums(self, batch, key=KEY):
        return self.loss(self.params, *self.example[True](batch, key))


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
    return jax.tree.map(
        lambda x, y: x.at[np.flatnonzero(~mask)].set(y[np.flatnonzero(~mask)]), a, b
    )


def assert_sums_close(a, b):
    assert a.keys() == b.keys()
    for name in a:
        for x, y in zip(a[name], b[name], strict=True):
            np.testing.assert_allclose(x, y, err_msg=name, **ROUNDING)


def test_pure(case):
    a, b = case.sums(case.batch), case.sums(case.batch)
    jax.tree.map(np.testing.assert_array_equal, a, b)
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
        assert_sums_close(whole, jax.tree.map(lambda a, b: a + b, *parts))


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


def run(objective, train, params, batch):
    example, keys = objective.example(batch, KEY, train=train, progress=PROGRESS)
    return objective.loss(params, example, keys, train=train, progress=PROGRESS)


def operations(jaxpr) -> list:
    """Every operation of a program with the literals that it reads, in order, inner ones too."""
    found = []
    for equation in jaxpr.eqns:
        literals = [str(v.val) for v in equation.invars if hasattr(v, "val")]
        found.append((equation.primitive.name, *literals))
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                found += operations(inner)
    return found


def traced(function, *arguments):
    closed = jax.make_jaxpr(function)(*arguments)
    return operations(closed.jaxpr), [constant(x) for x in closed.consts]


def program(objective, case, train):
    return traced(partial(run, objective, train), case.params, case.batch)


def constant(x) -> bytes:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x).tobytes()


def test_tracing_is_pure(case):
    """Two traces give the same program: nothing is drawn or kept on the Python side."""
    first, second = (program(case.objective, case, True) for _ in range(2))
    assert first == second and len(first[0]) > 100


# Settings that matter only beside others, and one that may not be changed.
BESIDE = {"hard_negative_rate": {"hard_negatives": 1}}
FIXED = {("span_mlm", "whole_words")}


def settings(objective):
    """Each setting of an objective with another value for it."""
    kinds = typing.get_type_hints(type(objective))
    for field in dataclasses.fields(objective):
        value = getattr(objective, field.name)
        # How often the gradients are measured is not up to the objective.
        if not field.metadata.get("config", True) or field.name == "measure_every":
            continue
        if isinstance(value, bool):
            other = not value
        elif isinstance(value, str):
            other = next(v for v in typing.get_args(kinds[field.name]) if v != value)
        elif isinstance(value, int):
            other = value + 1
        else:
            other = value / 2 if value > 0 else 0.05
        if (objective.name, field.name) not in FIXED:
            yield field.name, other


def looks(objective, batch):
    """What can be seen of an objective, the cheapest first."""
    yield objective.coefficients(PROGRESS)
    for train in (True, False):
        make = partial(objective.example, train=train, progress=PROGRESS)
        yield traced(make, batch, KEY)
    params = jax.eval_shape(objective.init, jax.random.key(0))
    yield traced(partial(run, objective, True), params, batch)


def test_every_setting_changes_something(case):
    if case.objective.name == "mixture":  # tests/objectives/test_mixture.py
        return
    known = {}
    for name, other in settings(case.objective):
        objective = dataclasses.replace(case.objective, **BESIDE.get(name, {}))
        changed = dataclasses.replace(objective, **{name: other})
        # What the objective itself looks like is traced once, as far as it is needed.
        rest, own = known.setdefault(objective, (looks(objective, case.batch), []))
        for number, look in enumerate(looks(changed, case.batch)):
            if number == len(own):
                own.append(next(rest))
            if look != own[number]:
                break
        else:
            pytest.fail(f"{name}={other} changes nothing")


def test_evaluation_is_deterministic_and_has_no_dropout(case):
    """Its program is that of a model which has no dropout."""
    a, b = (case.example[False](case.batch, KEY) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, a[0], b[0])
    if case.objective.name == "simcse":  # dropout is its corruption
        return
    still = dataclasses.replace(case.objective, backbone=case.backbone(dropout=0.0))
    assert program(case.objective, case, False) == program(still, case, False)


def test_one_and_eight_devices_agree(case):
    """On a mesh that divides parameters, heads and positions; test_sharding has more of them."""
    if case.objective.name in ("clm", "mlm", "span_corruption", "simcse"):
        pytest.skip("test_sharding has it, with gradients")
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


def test_compiled_and_eager_agree(case):
    """For a few of them: they share the code, and eager JAX compiles hundreds of small programs."""
    if case.objective.name not in ("mlm", "bert", "simcse"):
        pytest.skip("like those that are tested")
    assert_sums_close(case.sums(case.batch), run(case.objective, True, case.params, case.batch))


def test_gradients_are_finite_in_bfloat16(case):
    low = dataclasses.replace(case.objective, backbone=case.backbone(dropout=0.1, dtype="bfloat16"))
    example, keys = case.example[True](case.batch, KEY)

    def loss(params):
        sums = low.loss(params, example, keys, train=True, progress=PROGRESS)
        return total_loss(low.coefficients(PROGRESS), sums)

    gradient = jax.jit(jax.grad(loss))(case.params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        # Every matrix learns; what moves a bias may cancel.
        assert leaf.ndim < 2 or jnp.abs(leaf).sum() > 0, path


def test_flops_are_counted(case):
    """At least the products of one pass over the row, at most ten times as many."""
    config = case.objective.backbone.config
    once = 3 * 2 * LENGTH * (4 * config.width**2 + 2 * config.width * config.size_of_mlp)
    assert once / 2 <= case.objective.flops(LENGTH) <= 10 * once
