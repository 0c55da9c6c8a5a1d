"""Span corruption."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.corruption.sequences import Piece, join, single
from jaxpretrain.corruption.spans import (
    noise_counts,
    noise_mask,
    sentinel_inputs,
    sentinel_targets,
)
from jaxpretrain.errors import UserError
from jaxpretrain.objectives.base import require
from jaxpretrain.objectives.sequence_to_sequence import SequenceToSequence, TwoSequences
from jaxpretrain.types import Array, Batch


@dataclass(frozen=True, kw_only=True)
class Denoiser(SequenceToSequence):
    """What span corruption and the mixtures of it share.

    Each span leaves a sentinel behind; the target repeats the sentinels, each before its span, and
    ends with eos. The numbers of noise tokens and of spans are exact for each row, their lengths
    are random compositions.
    """

    special_targets = True
    token_term = "text_loss"

    @abstractmethod
    def noises(self, train: bool) -> list[tuple[float, float]]:
        """The noise densities and mean span lengths that a row may meet."""

    def check_run(self, *, length: int, batch_size: int, **parts) -> None:
        """See `Objective.check_run`: there are sentinels and room for all the spans."""
        for density, mean in self.noises(True) + self.noises(False):
            noise, spans = (int(x) for x in noise_counts(np.asarray(length), density, mean))
            wanted = round(noise / mean)
            if wanted > length - noise:
                raise UserError(
                    f"objective.noise_density {density} and mean_span_length {mean} make {wanted} "
                    f"spans in a row of {length} tokens, of which only {length - noise} stay "
                    "visible to keep them apart: lower the density or lengthen the spans"
                )
            if spans > len(self.vocab.sentinels):
                raise UserError(
                    f"{self.name} needs {spans} sentinels for rows of {length} tokens at noise "
                    f"density {density} and mean span length {mean}, and the tokenizer has "
                    f"{len(self.vocab.sentinels)}: shorten data.length, lengthen the spans, or "
                    "use a tokenizer with more sentinels"
                )
        super().check_run(length=length, batch_size=batch_size, **parts)

    def single_stack_size(self, length: int, *, train: bool) -> int:
        """See `SequenceToSequence`."""
        return self._sizes(length, train)[2]

    def draw(self, keys: Array, *, train: bool):
        """Which of the noises each row meets, a mode piece before it, and groups.

        Returns:
            Indices into `noises`, int32 ``[rows]``, the mode pieces, int32 ``[rows]`` or None, and
            `Example.extra`.
        """
        return jnp.zeros(keys.shape[0], jnp.int32), None, None

    def sequences(self, keys, batch: Batch, *, train: bool) -> TwoSequences:
        """See `SequenceToSequence`."""
        length = batch.tokens.shape[1]
        source_size, target_size, _ = self._sizes(length, train)
        vocab = self.vocab
        sentinels = jnp.asarray(vocab.sentinels, jnp.int32)
        draw_keys, mask_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        lengths = jnp.sum(batch.segments > 0, axis=1)
        picked, modes, extra = self.draw(draw_keys, train=train)
        # Noise tokens and spans by noise and length of the row.
        table = np.array([noise_counts(np.arange(length + 1), *n) for n in self.noises(train)])
        noise, spans = (jnp.asarray(table[:, i])[picked, lengths] for i in range(2))
        mode_piece = jnp.zeros_like(lengths) if modes is None else modes
        eos = single(vocab.eos)

        def row(key, tokens, segments, n, noise, spans, mode):
            cut = noise_mask(key, n, noise, spans, length)
            shown, shown_count = sentinel_inputs(
                tokens, segments > 0, cut, sentinels, source_size, vocab.pad
            )
            hidden, hidden_count = sentinel_targets(tokens, cut, sentinels, target_size, vocab.pad)
            first = single(mode, modes is not None)
            source = join([first, Piece(shown, 0, shown_count), eos], source_size, vocab.pad)
            target = join([Piece(hidden, 0, hidden_count), eos], target_size, vocab.pad)
            return source[0], source[2], target[0], jnp.where(noise > 0, target[2], 0)

        return TwoSequences(
            *jax.vmap(row)(
                mask_keys, batch.tokens, batch.segments, lengths, noise, spans, mode_piece
            ),
            extra=extra,
        )

    def _sizes(self, length: int, train: bool) -> tuple[int, int, int]:
        """Greatest lengths of source, target, and both together, over rows up to `length`."""
        tokens = np.arange(2, length + 1) if length >= 2 else np.array([2])
        greatest = np.zeros(3, int)
        for density, mean in self.noises(train):
            noise, spans = noise_counts(tokens, density, mean)
            source, target = tokens - noise + spans + 1, noise + spans + 1
            both = source + target - 1
            greatest = np.maximum(greatest, [source.max(), target.max(), both.max()])
        mode = int(self.has_modes)
        return int(greatest[0]) + mode, int(greatest[1]), int(greatest[2]) + mode

    @property
    def has_modes(self) -> bool:
        """Whether a mode piece stands before the source."""
        return False


@dataclass(frozen=True, kw_only=True)
class SpanCorruption(Denoiser):
    """Write the spans that were cut out of a text (T5: Raffel et al. 2020, arXiv:1910.10683).

    Attributes:
        noise_density: share of the tokens that is cut out.
        mean_span_length: tokens in a span, on average.

    Raises:
        UserError: a density outside (0, 1) or a mean length below 1.
    """

    name = "span_corruption"
    needs = ("sentinels",)

    noise_density: float = 0.15
    mean_span_length: float = 3.0

    # What held-out losses are measured at, whatever is trained: T5's own.
    EVAL: ClassVar[tuple[float, float]] = (0.15, 3.0)

    def __post_init__(self):
        require("noise_density", self.noise_density, 0 < self.noise_density < 1, "between 0 and 1")
        require("mean_span_length", self.mean_span_length, self.mean_span_length >= 1, "at least 1")

    def noises(self, train: bool) -> list[tuple[float, float]]:
        """See `Denoiser`."""
        return [(self.noise_density, self.mean_span_length) if train else self.EVAL]
