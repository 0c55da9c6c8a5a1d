"""What holds of the program of every objective, as it is traced: nothing here is compiled."""

import dataclasses
import typing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpretrain.objectives import OBJECTIVES
from support.contract import KEY, LENGTH, PROGRESS, Case, cases, named, run

# With a decoder only one: the program is that of its parts, which are all here.
CASES = [*named(*OBJECTIVES), *(case for case in cases() if case.id == "span_corruption-decoder")]


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return Case(*request.param)


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


def constant(x) -> bytes:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x).tobytes()


def test_tracing_is_pure(case):
    """Two traces give the same program: nothing is drawn or kept on the Python side."""
    first, second = (
        traced(partial(run, case.objective, True), case.shapes, case.batch) for _ in range(2)
    )
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


def test_evaluation_has_no_dropout(case):
    """Its program is that of a model which has no dropout."""
    if case.objective.name == "simcse":  # dropout is its corruption
        return
    still = dataclasses.replace(case.objective, backbone=case.backbone(dropout=0.0))
    example = jax.eval_shape(case.example[False], case.batch, KEY)
    with_dropout, without = (
        traced(partial(x.loss, train=False, progress=PROGRESS), case.shapes, *example)
        for x in (case.objective, still)
    )
    assert with_dropout == without and len(without[0]) > 50


def test_flops_are_counted(case):
    """At least the products of one pass over the row, at most ten times as many."""
    config = case.objective.backbone.config
    once = 3 * 2 * LENGTH * (4 * config.width**2 + 2 * config.width * config.size_of_mlp)
    assert once / 2 <= case.objective.flops(LENGTH) <= 10 * once
