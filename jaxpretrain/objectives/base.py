"""The contract that every objective keeps.

An objective is a frozen set of hyperparameters with pure functions: `corrupt`, from a batch of
tokens to what the backbone sees and must predict, and `loss`, from parameters and such an example
to sums. Its fields are its keys in a config file, with their types and defaults.
"""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp

from jaxpretrain.errors import UserError
from jaxpretrain.models.attention import Visibility
from jaxpretrain.models.flops import forward_flops
from jaxpretrain.models.placement import place
from jaxpretrain.models.transformer import Backbone
from jaxpretrain.types import Array, Batch, Example, Progress, Sum, Sums

unset: Any = None
View = Literal["packed", "document"]


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """What all objectives share. Subclasses add hyperparameters and check them when made.

    What training minimises is a sum of terms, each the mean of one of the sums that `loss` gives,
    times its coefficient. Most objectives have one term, "loss".

    Attributes:
        name: what `config.objective.name` says.
        needs: the special pieces, by their names in `Vocab`, that it cannot do without and that
            the tokenizer of an imported model may lack.
        views: which rows it can read, the preferred one first: "packed" rows of documents laid
            end to end, or "document" rows that are each a window of one document.
        visibility: who sees whom, known when compiling.
        is_likelihood: whether its loss is a likelihood of the text, or a bound on it, so that bits
            per byte of one model can be compared with another's.
        couples_rows: whether the loss of a row depends on the other rows of the batch, so that
            microbatches would change it.
        hides_text: whether what it predicts is a part of the text, given the rest.
        special_targets: whether special pieces are among the targets, as sentinels are; the loss
            over the text alone is then reported as ``text_loss``.
        token_term: the sum that is a cross-entropy over the tokens that `scored` gives; None if
            no tokens are predicted.
        samples: what a trained model can show of itself: "gaps" that it fills in, "continuations"
            of texts, or None.
        measure_every: steps between two measurements of how the terms share the gradient; 0 means
            never.
        backbone: the model, set by `bind`.
        vocab: `jaxpretrain.data.vocab.Vocab`, set by `bind`.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    views: ClassVar[tuple[View, ...]] = ("packed", "document")
    visibility: ClassVar[Visibility]
    is_likelihood: ClassVar[bool] = False
    couples_rows: ClassVar[bool] = False
    hides_text: ClassVar[bool] = True
    special_targets: ClassVar[bool] = False
    token_term: ClassVar[str | None] = "loss"
    samples: ClassVar[Literal["gaps", "continuations"] | None] = None
    measure_every: ClassVar[int] = 0

    backbone: Backbone = field(default=unset, repr=False, metadata={"config": False})
    vocab: Any = field(default=unset, repr=False, metadata={"config": False})

    # What a subclass defines.

    @abstractmethod
    def corrupt(self, keys: Array, batch: Batch, *, train: bool, progress: Progress) -> Example:
        """What the backbone sees of a batch and what it must predict.

        Args:
            keys: one PRNG key per row.
            batch: all the rows of a step.
            train: False gives the corruption at which held-out losses are compared, which does
                not depend on the settings being compared.
            progress: how far the training is.

        Returns:
            An Example, or another pytree of arrays with leading axis ``rows`` that the objective's
            own `loss` takes.
        """

    def loss(
        self, params: dict, example: Example, keys: Array, *, train: bool, progress: Progress
    ) -> Sums:
        """The terms of the loss and other quantities worth a look, as sums over rows.

        Args:
            params: parameters as `init` makes them.
            example: as `corrupt` makes it, or a part of its rows.
            keys: one PRNG key per row, independent of those of `corrupt`.
            train: turns dropout on.
            progress: how far the training is.

        Returns:
            Sums by name, in nats for losses; among them each key of `coefficients`.
        """
        hidden = self.encode(params, example, keys if train else None)
        return self.token_sums(params, hidden, example, self.groups(example))

    def groups(self, example: Example) -> dict[str, Array]:
        """Kinds of rows whose loss is reported besides: bool ``[rows]`` by name."""
        return {}

    def coefficients(self, progress: Progress) -> dict[str, Array | float]:
        """The terms that are minimised, with their factors."""
        return {"loss": 1.0}

    def initial_balance(self) -> dict[str, Array]:
        """Factors on the coefficients that are adapted while training, by task; none by default."""
        return {}

    def balanced(
        self, coefficients: Mapping[str, Array | float], balance: Mapping[str, Array]
    ) -> Mapping[str, Array | float]:
        """The coefficients times the factors of `initial_balance`, as they are by now."""
        return coefficients

    def term_weights(self, example: Example) -> dict[str, Array]:
        """The weight of each term over the rows of an example, known before the forward pass."""
        counts = example.weights if example.counts is None else example.counts
        return {"loss": jnp.sum(counts)}

    def scored(self, example: Example) -> tuple[Array, Array]:
        """Token ids that `token_term` is spread over, with weights of the same shape."""
        if not self.special_targets:
            return example.targets, example.weights
        special = jnp.asarray(self.vocab.is_special)[example.targets]
        return example.targets, example.weights * ~special

    def check_vocab(self) -> None:
        """Raises UserError where the vocabulary lacks a special piece that the objective needs."""
        lacking = [name for name in self.needs if getattr(self.vocab, name) in (None, ())]
        if lacking:
            raise UserError(
                f"{self.name} needs the special pieces {', '.join(self.needs)}, and "
                f"{self.vocab.owner} has no {', '.join(lacking)}: take an objective that does "
                "without, or a tokenizer that has them"
            )

    def check_model(self) -> None:
        """Raises UserError where the objective cannot work with its backbone and vocabulary."""
        self.require_single_stack()

    def check_run(
        self, *, length: int, batch_size: int, devices: int = 1, microbatches: int = 1
    ) -> None:
        """Raises UserError where the objective cannot work with these rows.

        Args:
            length: tokens in a row, ``data.length``.
            batch_size: rows in a step.
            devices: number of devices that share the rows.
            microbatches: parts of a step, one after another.
        """
        if self.couples_rows and microbatches > 1:
            raise UserError(
                f"{self.name} compares each row with all the others, so train.microbatches must "
                f"be 1, not {microbatches}: raise objective.chunks instead, which saves as much "
                "memory"
            )
        longest = self.longest_input(length, batch_size)
        config = self.backbone.config
        if config.positions == "learned" and longest > config.max_length:
            raise UserError(
                f"{self.name} makes inputs of {longest} positions out of rows of {length}, and "
                f"model.max_length is {config.max_length}: lower data.length or raise "
                "model.max_length"
            )

    def parts(self) -> list["Objective"]:
        """The objectives that this one is made of: those of a mixture, else itself."""
        return [self]

    # What all share.

    def bind(self, backbone: Backbone, vocab: Any) -> Self:
        """The same objective for a model and a vocabulary.

        Raises:
            UserError: they do not fit the objective.
        """
        bound = replace(self, backbone=backbone, vocab=vocab)
        bound.check_vocab()
        if backbone is not None:
            bound.check_model()
        return bound

    def init(self, key: Array) -> dict:
        """Initial parameters: those of the backbone and, under names of their own, any heads."""
        params = self.backbone.init(key)
        for name, part in self.heads().items():
            params[name] = part.init(jax.random.fold_in(key, zlib.crc32(name.encode())))
        return params

    def axes(self) -> dict:
        """Logical axis names of the parameters."""
        return self.backbone.axes() | {name: part.axes() for name, part in self.heads().items()}

    def heads(self) -> Mapping[str, Any]:
        """`models.functional.Functional` parts that are trained besides the backbone, by name."""
        return {}

    def example(
        self, batch: Batch, key: Array, *, train: bool, progress: Progress
    ) -> tuple[Example, Array]:
        """The corruption of a batch, and one key per row for `loss`, given the run's key."""
        keys = row_keys(key, self.name + "/corrupt", batch)
        example = self.corrupt(keys, batch, train=train, progress=progress)
        # Only what the backbone computes is divided further than by rows.
        example = jax.tree.map(lambda x: place(x, "rows", *[""] * (x.ndim - 1)), example)
        return example, row_keys(key, self.name + "/loss", batch)

    def encode(self, params: dict, example: Example, dropout_keys: Array | None) -> Array:
        """The backbone's stream ``[rows, length, width]`` over an example."""
        return self.backbone.encode(
            params,
            example.inputs,
            example.segments,
            example.positions,
            example.prefix,
            visibility=self.visibility,
            types=example.types,
            source=example.source,
            keys=dropout_keys,
        )

    def token_sums(
        self,
        params: dict,
        hidden: Array,
        example: Example,
        groups: Mapping[str, Array] | None = None,
        *,
        each: bool = False,
    ) -> Sums:
        """Cross-entropy and accuracy over the slots of an example, from the stream.

        Args:
            params: parameters.
            hidden: the stream ``[rows, length, width]``.
            example: whose slots are predicted.
            groups: bool ``[rows]`` by name; the loss over these rows is given under the name.
            each: whether it is the groups' losses that are minimised, rather than their sum.
        """
        if example.slots is not None:
            hidden = jnp.take_along_axis(hidden, example.slots[:, :, None], axis=1)
            hidden = place(hidden, "rows", "length", "width")
        found = self.backbone.token_loss(
            params, hidden, example.targets, example.weights, each=each
        )
        nats = jnp.sum(found.nats * example.weights, axis=1)
        counts = jnp.sum(example.weights, axis=1) if example.counts is None else example.counts
        used = (example.weights > 0).astype(jnp.float32)
        sums = {"loss": Sum(found.total, jnp.sum(counts))}
        sums["accuracy"] = Sum(jnp.sum(found.hits * used), jnp.sum(used))
        if self.special_targets:
            _, text = self.scored(example)
            sums["text_loss"] = Sum(jnp.sum(found.nats * text), jnp.sum(text))
        for name, member in (groups or {}).items():
            sums[name] = Sum(jnp.sum(nats * member), jnp.sum(counts * member))
        return sums

    def flops(self, length: int) -> int:
        """Floating-point operations of training on one row; see `models.flops.forward_flops`."""
        example = self.shapes(length)
        return 3 * forward_flops(
            self.backbone.config,
            length=example.inputs.shape[1],
            slots=example.targets.shape[1],
            visibility=self.visibility,
            source_length=0 if example.source is None else example.source.inputs.shape[1],
        )

    def shapes(self, length: int, rows: int = 1, *, train: bool = True) -> Any:
        """Shapes of the example that is made of `rows` rows of `length` tokens."""
        return _shapes(self, length, rows, train)

    def longest_input(self, length: int, rows: int) -> int:
        """Most positions that the backbone reads of a row."""
        longest = 0
        for train in (True, False):
            example = self.shapes(length, rows, train=train)
            source = getattr(example, "source", None)
            longest = max(
                longest, example.inputs.shape[-1], source.inputs.shape[-1] if source else 0
            )
        return longest

    def require_single_stack(self) -> None:
        """Raises UserError if the backbone has a decoder."""
        if self.backbone.config.decoder_layers:
            raise UserError(
                f"{self.name} trains a single stack, and model.decoder_layers is "
                f"{self.backbone.config.decoder_layers}: set model.decoder_layers=0, or use "
                "span_corruption, ul2 or prefix_lm"
            )

    def require_token_types(self) -> None:
        """Raises UserError if the backbone cannot tell the two parts of a pair apart."""
        if self.backbone.config.token_types < 2:
            raise UserError(
                f"{self.name} marks the two parts of a pair by token types, and model.token_types "
                f"is {self.backbone.config.token_types}: set model.token_types=2 (the preset "
                "'bert' has it)"
            )


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


def split_rows(x: Array, parts: int) -> Array:
    """``[rows, ...]`` to ``[parts, rows / parts, ...]``, every part from all over the rows.

    Strided, so that rows divided over devices stay on their device.
    """
    return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)


def merge_rows(x: Array) -> Array:
    """The inverse of `split_rows`."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])


def total_loss(coefficients: Mapping[str, Array | float], sums: Sums) -> Array:
    """The number that is minimised: the means of the terms, times their coefficients."""
    return sum(factor * sums[term].mean() for term, factor in coefficients.items())


@lru_cache(maxsize=64)
def _shapes(objective: Objective, length: int, rows: int, train: bool) -> Any:
    wide = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    flat = jax.ShapeDtypeStruct((rows,), jnp.int32)
    batch = Batch(wide, wide, wide, flat, flat, flat)
    start = Progress(jnp.int32(0), jnp.float32(0.0))

    def make(batch):
        return objective.example(batch, jax.random.key(0), train=train, progress=start)[0]

    return jax.eval_shape(make, batch)


def require(section_key: str, value: Any, holds: bool, rule: str) -> None:
    """Raises UserError("objective.KEY is VALUE: it must be RULE") unless it holds."""
    if not holds:
        raise UserError(f"objective.{section_key} is {value}: it must be {rule}")
