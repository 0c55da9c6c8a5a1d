"""What objectives share that read one sequence both ways and write another: T5's text-to-text."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxpretrain.corruption.sequences import Piece, join, one_segment, single
from jaxpretrain.objectives.base import Objective
from jaxpretrain.types import Array, Batch, Example, Source


class TwoSequences(NamedTuple):
    """What is read and what is written, of each row.

    Attributes:
        source: int32 ``[rows, source size]``.
        source_count: int32 ``[rows]``, tokens of it that are used.
        target: int32 ``[rows, target size]``.
        target_count: int32 ``[rows]``, 0 for a row that nothing can be learned from.
        extra: see `Example.extra`.
    """

    source: Array
    source_count: Array
    target: Array
    target_count: Array
    extra: dict[str, Array] | None = None


@dataclass(frozen=True, kw_only=True)
class SequenceToSequence(Objective):
    """Read a source both ways, write a target from left to right.

    On a model with a decoder the encoder reads the source, and the decoder begins with padding, as
    T5's does (Raffel et al. 2020, arXiv:1910.10683). On a single stack both are one sequence of
    which the source is the prefix that sees itself both ways.
    """

    views = ("document",)

    @property
    def visibility(self):
        """Of the target: causal in a decoder, with the source as prefix in a single stack."""
        return "causal" if self.backbone.config.decoder_layers else "prefix"

    @abstractmethod
    def sequences(self, keys: Array, batch: Batch, *, train: bool) -> TwoSequences:
        """The source and the target of each row."""

    @abstractmethod
    def single_stack_size(self, length: int, *, train: bool) -> int:
        """Most tokens that source and target have together."""

    def check_model(self) -> None:
        """See `Objective.check_model`: any stack will do."""

    def corrupt(self, keys, batch: Batch, *, train: bool, progress) -> Example:
        """See `Objective.corrupt`. There is a slot for each token of the target."""
        pair = self.sequences(keys, batch, train=train)
        slots = pair.target.shape[1]
        place = jnp.arange(slots)
        used = place < pair.target_count[:, None]
        source_count = jnp.where(pair.target_count > 0, pair.source_count, 0)
        decoder_start = single(self.vocab.pad)

        def decoder_inputs(target, count):
            return join([decoder_start, Piece(target, 0, count - 1)], slots, self.vocab.pad)[0]

        def one_sequence(source, source_count, target, count):
            size = self.single_stack_size(batch.tokens.shape[1], train=train)
            pieces = [Piece(source, 0, source_count), Piece(target, 0, count - 1)]
            return join(pieces, size, self.vocab.pad)[0]

        common = {
            "targets": jnp.where(used, pair.target, self.vocab.pad),
            "weights": used.astype(jnp.float32),
            "extra": pair.extra,
        }
        if self.backbone.config.decoder_layers:
            segments, positions = one_segment(pair.target_count, slots)
            source_segments, source_positions = one_segment(source_count, pair.source.shape[1])
            return Example(
                inputs=jax.vmap(decoder_inputs)(pair.target, pair.target_count),
                segments=segments,
                positions=positions,
                slots=None,
                source=Source(
                    jnp.where(source_segments > 0, pair.source, self.vocab.pad),
                    source_segments,
                    source_positions,
                ),
                **common,
            )
        inputs = jax.vmap(one_sequence)(pair.source, source_count, pair.target, pair.target_count)
        size = inputs.shape[1]
        count = jnp.where(pair.target_count > 0, source_count + pair.target_count - 1, 0)
        segments, positions = one_segment(count, size)
        return Example(
            inputs=inputs,
            segments=segments,
            positions=positions,
            slots=jnp.clip(source_count[:, None] - 1 + place, 0, size - 1),
            prefix=source_count,
            **common,
        )
