"""Span corruption and UL2's denoisers in plain Python, one row at a time.

Written from the published definitions (T5: Raffel et al. 2020, arXiv:1910.10683, and its
``random_spans_noise_mask``; UL2: Tay et al. 2022, arXiv:2205.05131), without reference to the
library. A row's noise mask is uniform over a finite set, which :func:`noise_masks` lists, so that
distributions can be compared exactly. Masks are bool arrays [n] in which True is noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxpretrain.data.vocab import Vocab

UL2_TABLE: list[tuple[str, float | None, float]] = [
    ("mode_r", 3.0, 0.15),
    ("mode_r", 8.0, 0.15),
    ("mode_x", 3.0, 0.5),
    ("mode_x", 8.0, 0.5),
    ("mode_x", 64.0, 0.15),
    ("mode_x", 64.0, 0.5),
    ("mode_s", None, 0.25),
]
"""UL2's denoisers, drawn uniformly: the field of ``Vocab`` with the mode piece, the mean length of
a span (None: always one span) and the share of noise tokens."""


def _rounded_product(n: int, density: float) -> int:
    """``round(n * density)`` in float32, half to even."""
    return int(np.round(np.float32(n) * np.float32(density)))


def noise_counts(n: int, density: float, mean_span: float | None) -> tuple[int, int]:
    """The numbers ``(N, k)`` of noise tokens and of noise spans in a row of ``n`` tokens.

    ``N = clip(round(n * density), 1, n - 1)``, ``k = clip(round(N / mean_span), 1, min(N, n - N))``
    in float32, half to even. ``mean_span=None`` gives one span. (0, 0) when n < 2: nothing can be
    predicted.
    """
    if n < 2:
        return 0, 0
    noise = min(max(_rounded_product(n, density), 1), n - 1)
    if mean_span is None:
        return noise, 1
    spans = int(np.round(np.float32(noise) / np.float32(mean_span)))
    return noise, min(max(spans, 1), noise, n - noise)


def ul2_counts(n: int, denoiser: int) -> tuple[int, int]:
    """:func:`noise_counts` of entry number ``denoiser`` of :data:`UL2_TABLE`."""
    _, mean_span, density = UL2_TABLE[denoiser]
    return noise_counts(n, density, mean_span)


def compositions(total: int, parts: int) -> list[tuple[int, ...]]:
    """All ways to write ``total`` as an ordered sum of ``parts`` positive numbers."""
    if parts == 0:
        return [()] if total == 0 else []
    result = []
    for cuts in combinations(range(1, total), parts - 1):
        borders = (0, *cuts, total)
        result.append(tuple(borders[j + 1] - borders[j] for j in range(parts)))
    return result if total >= parts else []


def noise_masks(n: int, density: float, mean_span: float | None) -> list[np.ndarray]:
    """All noise masks of a row of ``n`` tokens, each as likely as any other.

    Noise tokens and others are each cut into k positive parts by an independent uniformly random
    composition; the parts are interleaved, beginning with one that is not noise.
    """
    noise, spans = noise_counts(n, density, mean_span)
    masks = []
    for noise_lengths in compositions(noise, spans):
        for other_lengths in compositions(n - noise, spans) if spans else [()]:
            mask: list[bool] = [] if spans else [False] * n
            for other_length, noise_length in zip(other_lengths, noise_lengths, strict=True):
                mask += [False] * other_length + [True] * noise_length
            masks.append(np.array(mask, bool))
    return masks


def corrupt_by_mask(
    tokens: Sequence[int], mask: Sequence[bool], vocab: Vocab, mode: str | None = None
) -> tuple[list[int], list[int]]:
    """The encoder's inputs and the targets that a noise mask makes of a row.

    Args:
        tokens: The row's tokens, without padding.
        mask: Noise tokens, as many as ``tokens``. Every maximal run of them is a span.
        vocab: The vocabulary.
        mode: Name of the ``Vocab`` field whose piece is put before the inputs, as ``"mode_r"``.

    Returns:
        ``(encoder_inputs, targets)``. The inputs are the tokens with sentinel j in place of span j,
        then eos; the targets are each sentinel with its span's tokens after it, then eos.
    """
    inputs: list[int] = [] if mode is None else [int(getattr(vocab, mode))]
    targets: list[int] = []
    spans, inside = 0, False
    for token, is_noise in zip(tokens, mask, strict=True):
        if is_noise and not inside:
            if spans == len(vocab.sentinels):
                raise ValueError(f"more than {spans} spans: the vocabulary lacks sentinels")
            inputs.append(int(vocab.sentinels[spans]))
            targets.append(int(vocab.sentinels[spans]))
            spans += 1
        (targets if is_noise else inputs).append(int(token))
        inside = bool(is_noise)
    return [*inputs, int(vocab.eos)], [*targets, int(vocab.eos)]


def reconstruct(encoder_inputs: Sequence[int], targets: Sequence[int], vocab: Vocab) -> list[int]:
    """The original tokens: the inverse of :func:`corrupt_by_mask`.

    Args:
        encoder_inputs: As returned there, without padding. A mode piece in front is ignored.
        targets: As returned there, without padding.
        vocab: The vocabulary.

    Raises:
        ValueError: No such row exists: an eos is missing, sentinels are out of order, or the
            inputs and the targets have different ones, a span is empty or touches another, or
            there is another special piece.
    """
    encoder_inputs = [int(token) for token in encoder_inputs]
    targets = [int(token) for token in targets]
    if encoder_inputs and encoder_inputs[0] in (vocab.mode_r, vocab.mode_s, vocab.mode_x):
        encoder_inputs = encoder_inputs[1:]
    kept = _pieces(encoder_inputs, vocab, "inputs")
    spans = _pieces(targets, vocab, "targets")
    if len(kept) != len(spans):
        raise ValueError(f"{len(kept) - 1} sentinels in the inputs, {len(spans) - 1} in targets")
    if spans[0]:
        raise ValueError("the targets do not begin with a sentinel")
    if any(not span for span in spans[1:]):
        raise ValueError("a span of the targets is empty")
    if any(not part for part in kept[1:-1]):
        raise ValueError("two spans touch in the inputs")
    tokens = list(kept[0])
    for span, part in zip(spans[1:], kept[1:], strict=True):
        tokens += span + part
    return tokens


def _pieces(sequence: list[int], vocab: Vocab, name: str) -> list[list[int]]:
    """What is before, between and after the sentinels, which must be 0, 1, … in order."""
    if not sequence or sequence[-1] != vocab.eos:
        raise ValueError(f"the {name} do not end with eos")
    parts: list[list[int]] = [[]]
    for token in sequence[:-1]:
        if token in vocab.sentinels:
            if vocab.sentinels.index(token) != len(parts) - 1:
                raise ValueError(f"the sentinels of the {name} are out of order")
            parts.append([])
        elif not 0 <= token < vocab.size or vocab.is_special[token]:
            raise ValueError(f"the {name} have the special piece {token} inside")
        else:
            parts[-1].append(token)
    return parts


def single_stack(
    encoder_inputs: Sequence[int], targets: Sequence[int]
) -> tuple[list[int], int, list[int]]:
    """One sequence for a decoder-only model.

    Returns:
        ``(inputs, prefix, slots)``: the encoder's inputs and the targets but for the last; the
        number of encoder inputs, which see each other both ways; and for target j the position
        ``slots[j] = prefix - 1 + j`` at which it is predicted.
    """
    inputs = [int(token) for token in (*encoder_inputs, *targets[:-1])]
    prefix = len(encoder_inputs)
    return inputs, prefix, [prefix - 1 + j for j in range(len(targets))]
