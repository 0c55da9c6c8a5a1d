"""What contrastive objectives share: views of each row, pooled vectors, InfoNCE over the batch."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxpretrain.corruption.crops import enclosed
from jaxpretrain.corruption.masks import choose_tokens, maskable, replace_tokens
from jaxpretrain.corruption.sequences import one_segment
from jaxpretrain.errors import UserError
from jaxpretrain.losses import info_nce
from jaxpretrain.models.flops import forward_flops
from jaxpretrain.models.heads import projection
from jaxpretrain.objectives.base import Objective, merge_rows, require, split_rows
from jaxpretrain.types import Array, Batch, Sums


class Views(NamedTuple):
    """Several views of each row, ``[cls] tokens [sep]`` each.

    Attributes:
        inputs: int32 ``[rows, views, size]``: a query, its key, then hard negatives.
        segments: int32 ``[rows, views, size]``.
        positions: int32 ``[rows, views, size]``.
        weights: float32 ``[rows]``, 0 for a row of padding.
    """

    inputs: Array
    segments: Array
    positions: Array
    weights: Array


@dataclass(frozen=True, kw_only=True)
class Contrastive(Objective):
    """Find one's own other view among the views of all the rows of the batch.

    Attributes:
        pooling: the vector of a view: at "cls", its first position; the "mean" over all its
            tokens; or at the "last" one, read causally.
        temperature: what the cosines are divided by.
        projection: a dense layer and tanh over the pooled vector, for the loss only: what is used
            downstream is the pooled vector.
        symmetric: let keys find their queries too, and take the mean.
        hard_negatives: copies of each row, with some tokens replaced by random ones, that are
            negatives of every query.
        hard_negative_rate: share of their tokens that is replaced.
        chunks: parts that the rows are encoded in, one after another, each computed again in the
            backward pass, so that a large batch fits (GradCache: Gao et al. 2021,
            arXiv:2101.06983).

    Raises:
        UserError: values out of range.
    """

    views = ("document",)
    token_term = None
    couples_rows = True

    pooling: Literal["cls", "mean", "last"] = "mean"
    temperature: float = 0.05
    projection: bool = False
    symmetric: bool = False
    hard_negatives: int = 0
    hard_negative_rate: float = 0.3
    chunks: int = 1

    def __post_init__(self):
        require("temperature", self.temperature, self.temperature > 0, "above 0")
        require("hard_negatives", self.hard_negatives, self.hard_negatives >= 0, "0 or more")
        rate = self.hard_negative_rate
        require("hard_negative_rate", rate, 0 < rate <= 1, "above 0 and at most 1")
        require("chunks", self.chunks, self.chunks >= 1, "at least 1")

    @property
    def visibility(self):
        """Causal where the last position speaks for the row, else full."""
        return "causal" if self.pooling == "last" else "full"

    @abstractmethod
    def views_of_row(self, key: Array, tokens: Array, count: Array, size: int) -> list:
        """The query and the key of one row, each as tokens ``[size]`` and their number."""

    def view_size(self, length: int) -> int:
        """Positions of a view, with cls and sep."""
        return length + 2

    def check_run(self, *, length: int, batch_size: int, **parts) -> None:
        """See `Objective.check_run`: enough rows to tell apart, and they divide into chunks."""
        super().check_run(length=length, batch_size=batch_size, **parts)
        if batch_size < 2:
            raise UserError(
                f"{self.name} tells the rows of a batch apart, and data.batch_size is "
                f"{batch_size}: make it at least 2"
            )
        if batch_size % self.chunks:
            raise UserError(
                f"objective.chunks is {self.chunks}, which does not divide data.batch_size "
                f"{batch_size}"
            )

    def heads(self):
        """See `Objective.heads`."""
        return {"projection_head": projection(self.backbone.config)} if self.projection else {}

    def corrupt(self, keys, batch: Batch, *, train: bool, progress) -> Views:
        """See `Objective.corrupt`."""
        length = batch.tokens.shape[1]
        size = self.view_size(length)

        def row(key, tokens, segments):
            count = jnp.sum(segments > 0, dtype=jnp.int32)
            view_key, hard_key = jax.random.split(key)
            views = self.views_of_row(view_key, tokens, count, size)
            for number in range(self.hard_negatives):
                copy = self.corrupted_copy(jax.random.fold_in(hard_key, number), tokens, segments)
                views.append(enclosed(copy, jnp.minimum(count, size - 2), size, self.vocab))
            inputs, counts = zip(*views, strict=True)
            return jnp.stack(inputs), jnp.stack(counts), count > 0

        inputs, counts, present = jax.vmap(row)(keys, batch.tokens, batch.segments)
        counts = jnp.where(present[:, None], counts, 0)
        segments, positions = one_segment(counts.ravel(), size)
        segments = segments.reshape(inputs.shape)
        return Views(
            inputs=jnp.where(segments > 0, inputs, self.vocab.pad),
            segments=segments,
            positions=positions.reshape(inputs.shape),
            weights=present.astype(jnp.float32),
        )

    def corrupted_copy(self, key: Array, tokens: Array, segments: Array) -> Array:
        """The row with a share of its ordinary tokens replaced by random ones."""
        eligible = maskable(tokens, segments, self.vocab.is_special)
        choose_key, replace_key = jax.random.split(key)
        length = tokens.shape[0]
        count = jnp.ceil(jnp.sum(eligible) * self.hard_negative_rate).astype(jnp.int32)
        return replace_tokens(
            replace_key,
            tokens,
            choose_tokens(choose_key, eligible, count, length),
            mask_share=0.0,
            random_share=1.0,
            mask_id=None,
            ordinary=self.vocab.ordinary,
        )

    def term_weights(self, example: Views):
        """See `Objective.term_weights`."""
        return {"loss": jnp.sum(example.weights)}

    def dropout_keys(self, keys: Array, train: bool) -> Array | None:
        """Keys for the dropout of a pass, or None for none."""
        return keys if train else None

    def loss(self, params, example: Views, keys, *, train: bool, progress) -> Sums:
        """See `Objective.loss`, and `losses.info_nce` for what is reported."""
        vectors = self.vectors(params, example, self.dropout_keys(keys, train))
        return info_nce(
            vectors[:, 0],
            vectors[:, 1],
            example.weights,
            temperature=self.temperature,
            hard_negatives=vectors[:, 2:] if self.hard_negatives else None,
            symmetric=self.symmetric,
        )

    def vectors(self, params: dict, example: Views, keys: Array | None) -> Array:
        """The pooled vectors of all views, float32 ``[rows, views, width]``."""
        views = example.inputs.shape[1]
        if keys is not None:
            numbers = jnp.arange(views)
            fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
            keys = fold(keys, numbers)

        def encode(part):
            inputs, segments, positions, keys = part
            flat = [x.reshape(-1, x.shape[-1]) for x in (inputs, segments, positions)]
            flat_keys = None if keys is None else keys.reshape(-1)
            hidden = self.backbone.encode(params, *flat, visibility=self.visibility, keys=flat_keys)
            pooled = pool(hidden, flat[1], self.pooling)
            if self.projection:
                head = self.heads()["projection_head"].module(params["projection_head"])
                pooled = head(pooled)
            return pooled.astype(jnp.float32).reshape(inputs.shape[0], views, -1)

        rows = (example.inputs, example.segments, example.positions, keys)
        if self.chunks == 1:
            return encode(rows)
        parts = jax.tree.map(lambda x: split_rows(x, self.chunks), rows)
        return merge_rows(jax.lax.map(jax.checkpoint(encode), parts))

    def flops(self, length: int) -> int:
        """See `Objective.flops`: one pass for each view."""
        passes = 2 + self.hard_negatives
        return (
            3
            * passes
            * forward_flops(
                self.backbone.config,
                length=self.view_size(length),
                slots=0,
                visibility=self.visibility,
            )
        )


def pool(hidden: Array, segments: Array, pooling: str) -> Array:
    """One vector for each row of a stream.

    Args:
        hidden: ``[rows, length, width]``.
        segments: int32 ``[rows, length]``, 0 at padding, which comes last.
        pooling: "cls", "mean" or "last".

    Returns:
        ``[rows, width]``.
    """
    if pooling == "cls":
        return hidden[:, 0]
    used = segments > 0
    if pooling == "last":
        last = jnp.maximum(jnp.sum(used, axis=1) - 1, 0)
        return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    total = jnp.sum(jnp.where(used[:, :, None], hidden, 0), axis=1, dtype=jnp.float32)
    return total / jnp.maximum(jnp.sum(used, axis=1), 1)[:, None]
