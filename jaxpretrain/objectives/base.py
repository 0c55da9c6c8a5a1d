"""The contract that every objective keeps.

An objective is a frozen set of hyperparameters with two pure functions: `corrupt`, from a batch of
tokens to what the backbone sees and must predict, and `loss`, from parameters and a batch to sums.
Its fields are its keys in a config file, with their types and defaults.
"""

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp

from jaxpretrain.losses import accuracy, cross_entropy
from jaxpretrain.models.attention import Visibility
from jaxpretrain.models.flops import forward_flops
from jaxpretrain.models.transformer import Backbone
from jaxpretrain.types import Array, Batch, Example, Sums

unset: Any = None


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """What all objectives share. Subclasses add hyperparameters and check them when made.

    Attributes:
        name: what `config.objective.name` says.
        view: which rows it reads: "packed" or "document".
        visibility: who sees whom, known when compiling.
        is_likelihood: whether its loss is a likelihood of the text, so that bits per byte of one
            model can be compared with another's.
        backbone: the model, set by `bind`.
        vocab: `jaxpretrain.data.tokenizer.Vocab`, set by `bind`.
    """

    name: ClassVar[str]
    view: ClassVar[Literal["packed", "document"]] = "packed"
    visibility: ClassVar[Visibility]
    is_likelihood: ClassVar[bool] = False

    backbone: Backbone = field(default=unset, repr=False, metadata={"config": False})
    vocab: Any = field(default=unset, repr=False, metadata={"config": False})

    def bind(self, backbone: Backbone, vocab: Any) -> Self:
        """The same objective for a model and a vocabulary."""
        return replace(self, backbone=backbone, vocab=vocab)

    def init(self, key: Array) -> dict:
        """Initial parameters of everything that the objective trains."""
        return self.backbone.init(key)

    def axes(self) -> dict:
        """Logical axis names of the parameters."""
        return self.backbone.axes()

    @abstractmethod
    def corrupt(self, keys: Array, batch: Batch, *, train: bool, progress: Array) -> Example:
        """What the backbone sees of a batch and what it must predict.

        Args:
            keys: one PRNG key per row.
            batch: rows of tokens.
            train: False gives the corruption at which held-out losses are compared, which does
                not depend on the settings being compared.
            progress: float32 scalar in [0, 1], the share of the training that is done.
        """

    def loss(self, params: dict, batch: Batch, key: Array, *, train: bool, progress: Array) -> Sums:
        """The loss, in nats per predicted token, and other quantities worth a look.

        Args:
            params: parameters as `init` makes them.
            batch: rows of tokens.
            key: the run's PRNG key; rows derive theirs from it with `row_keys`.
            train: turns dropout on and the held-out corruption off.
            progress: float32 scalar in [0, 1].

        Returns:
            Sums by name; ``"loss"`` is the one that training minimises.
        """
        example = self.example(batch, key, train=train, progress=progress)
        dropout_keys = row_keys(key, self.name + "/dropout", batch) if train else None
        return self.prediction(params, example, dropout_keys)

    def example(self, batch: Batch, key: Array, *, train: bool, progress: Array) -> Example:
        """The corruption that `loss` works on, given the run's key."""
        keys = row_keys(key, self.name + "/corrupt", batch)
        return self.corrupt(keys, batch, train=train, progress=progress)

    def flops(self, length: int) -> int:
        """Floating-point operations of training on one row; see `models.flops.forward_flops`."""
        row = jax.ShapeDtypeStruct((1, length), jnp.int32)
        one = jax.ShapeDtypeStruct((1,), jnp.int32)
        shapes = jax.eval_shape(
            lambda batch: self.example(batch, jax.random.key(0), train=True, progress=0.0),
            Batch(row, row, row, one, one),
        )
        slots = shapes.targets.shape[1]
        return 3 * forward_flops(
            self.backbone.config, length=length, slots=slots, visibility=self.visibility
        )

    def prediction(self, params: dict, example: Example, dropout_keys: Array | None) -> Sums:
        """Cross-entropy and accuracy over the slots of an example, from one forward pass."""
        hidden = self.backbone.encode(
            params,
            example.inputs,
            example.segments,
            example.positions,
            example.prefix,
            visibility=self.visibility,
            keys=dropout_keys,
        )
        if example.slots is not None:
            hidden = jnp.take_along_axis(hidden, example.slots[:, :, None], axis=1)
        logits = self.backbone.logits(params, hidden)
        return {
            "loss": cross_entropy(logits, example.targets, example.weights),
            "accuracy": accuracy(logits, example.targets, example.weights),
        }


def row_keys(key: Array, name: str, batch: Batch) -> Array:
    """One PRNG key per row, from the run's key, a name, the epoch and the row's number only.

    So a row meets the same randomness after a resume, on other hosts, at another batch size or
    microbatch split.
    """
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    # A row of padding has number -1; fold_in wants a non-negative one.
    numbers = batch.row_ids.astype(jnp.uint32)
    fold = jax.vmap(lambda epoch, row: jax.random.fold_in(jax.random.fold_in(key, epoch), row))
    return fold(batch.epochs.astype(jnp.uint32), numbers)
