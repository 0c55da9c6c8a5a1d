"""The cases of the contract of the objectives: each objective in the table is one.

Objectives that take a decoder are here twice, with one and without.
"""

from collections.abc import Iterator
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import pytest

from jaxpretrain.objectives import OBJECTIVES
from jaxpretrain.objectives.sequence_to_sequence import SequenceToSequence
from jaxpretrain.types import Progress
from support.small import example_objective, small_backbone, small_batch, small_vocab

VOCAB = small_vocab()
ROWS, LENGTH = 8, 24
KEY = jax.random.key(7)
PROGRESS = Progress(jnp.int32(3), jnp.float32(0.3))


def cases() -> Iterator:
    """Parameters of a fixture: the arguments of `Case`."""
    for name, cls in OBJECTIVES.items():
        yield pytest.param((name, 0), id=name)
        if issubclass(cls, SequenceToSequence):
            yield pytest.param((name, 1), id=f"{name}-decoder")


def named(*names: str) -> list:
    """The cases of these objectives, without a decoder."""
    return [case for case in cases() if case.values[0][1] == 0 and case.id in names]


class Case:
    """An objective on a tiny model, with its functions compiled when they are first used."""

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
        view = self.objective.views[0]
        self.batch = small_batch(3, VOCAB, rows=ROWS, length=LENGTH, view=view)
        self.other = small_batch(9, VOCAB, rows=ROWS, length=LENGTH, view=view)
        self.example = {
            train: jax.jit(partial(self.objective.example, train=train, progress=PROGRESS))
            for train in (True, False)
        }
        self.loss = jax.jit(partial(self.objective.loss, train=True, progress=PROGRESS))

    @cached_property
    def params(self):
        """As they are initialised."""
        return self.objective.init(jax.random.key(0))

    @cached_property
    def shapes(self):
        """Of the parameters, which is all that tracing takes."""
        return jax.eval_shape(self.objective.init, jax.random.key(0))

    def sums(self, batch, key=KEY):
        """What the objective gives of a batch in training."""
        return self.loss(self.params, *self.example[True](batch, key))


def run(objective, train, params, batch):
    """The sums of an objective, with its corruption."""
    example, keys = objective.example(batch, KEY, train=train, progress=PROGRESS)
    return objective.loss(params, example, keys, train=train, progress=PROGRESS)
