"""Fill-in-the-middle and prefix language modelling in plain Python, one row at a time.

Written from the published definitions (FIM: Bavarian et al. 2022, arXiv:2207.14255; prefix LM:
Raffel et al. 2020, arXiv:1910.10683, section 3.2), without reference to the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jaxpretrain.data.vocab import Vocab


def fim(
    tokens: Sequence[int], a: int, b: int, kind: Literal["none", "psm", "spm"], vocab: Vocab
) -> list[int]:
    """A row with its middle ``tokens[a:b]`` moved to the end.

    ``"psm"``: fim_prefix p fim_suffix s fim_middle m eos. ``"spm"``: fim_prefix fim_suffix s
    fim_middle p m eos. ``"none"``: bos and the tokens as they are (``a`` and ``b`` do not matter).
    Every piece of the result but the first is predicted.
    """
    tokens = [int(token) for token in tokens]
    if kind == "none":
        return [vocab.bos, *tokens]
    if not 0 <= a <= b <= len(tokens):
        raise ValueError(f"the cuts {a} and {b} are not in order within 0…{len(tokens)}")
    prefix, middle, suffix = tokens[:a], tokens[a:b], tokens[b:]
    if kind == "psm":
        body = [vocab.fim_prefix, *prefix, vocab.fim_suffix, *suffix, vocab.fim_middle, *middle]
    elif kind == "spm":
        body = [vocab.fim_prefix, vocab.fim_suffix, *suffix, vocab.fim_middle, *prefix, *middle]
    else:
        raise ValueError(f"kind {kind!r} is unknown")
    return [*body, vocab.eos]


def undo_fim(
    sequence: Sequence[int], vocab: Vocab
) -> tuple[list[int], str, int | None, int | None]:
    """The inverse of :func:`fim`: ``(tokens, kind, a, b)``.

    The tokens and ``b`` always come back. SPM does not show where its prefix ends, so its ``a`` is
    None; and PSM with an empty prefix looks the same as SPM, so it comes back as ``"spm"``. For
    ``"none"`` both cuts are None.

    Args:
        sequence: As :func:`fim` returns it, without padding.
        vocab: The vocabulary.

    Raises:
        ValueError: :func:`fim` makes no such sequence of ordinary tokens.
    """
    sequence = [int(token) for token in sequence]
    special = [token for token in sequence if vocab.is_special[token]]
    if sequence and special == [vocab.bos] and sequence[0] == vocab.bos:
        return sequence[1:], "none", None, None
    if special != [vocab.fim_prefix, vocab.fim_suffix, vocab.fim_middle, vocab.eos]:
        raise ValueError(f"the special pieces are {special}")
    if sequence[0] != vocab.fim_prefix or sequence[-1] != vocab.eos:
        raise ValueError("ordinary tokens are before fim_prefix or after eos")
    suffix_mark = sequence.index(vocab.fim_suffix)
    middle_mark = sequence.index(vocab.fim_middle)
    prefix = sequence[1:suffix_mark]
    suffix = sequence[suffix_mark + 1 : middle_mark]
    last = sequence[middle_mark + 1 : -1]
    tokens = prefix + last + suffix
    b = len(prefix) + len(last)
    return (tokens, "psm", len(prefix), b) if prefix else (tokens, "spm", None, b)


def fim_cut_probabilities(n: int) -> dict[tuple[int, int], Fraction]:
    """The exact distribution of the cuts ``a <= b``: two uniform draws from {0, …, n}, sorted."""
    result: dict[tuple[int, int], Fraction] = {}
    for first in range(n + 1):
        for second in range(n + 1):
            cuts = (min(first, second), max(first, second))
            result[cuts] = result.get(cuts, Fraction(0)) + Fraction(1, (n + 1) ** 2)
    return result


def prefix_lm(
    tokens: Sequence[int], p: int, pad: int, form: Literal["single", "encoder_decoder"]
) -> tuple[list[int], int, list[int], list[int]] | tuple[list[int], list[int], list[int]]:
    """A row of n tokens of which those from ``p`` on are predicted, 1 <= p <= n - 1.

    Returns:
        For ``"single"``: ``(inputs, prefix, targets, weights)``, where ``prefix = p`` tokens see
        each other both ways. Slot i has the target ``tokens[i + 1]`` (the last slot has ``pad``)
        with weight 1 if ``p <= i + 1 <= n - 1``, else 0.

        For ``"encoder_decoder"``: ``(encoder_inputs, decoder_inputs, targets)``; all targets have
        weight 1.
    """
    tokens = [int(token) for token in tokens]
    n = len(tokens)
    if not 1 <= p <= n - 1:
        raise ValueError(f"the split {p} is not within 1…{n - 1}")
    if form == "encoder_decoder":
        return tokens[:p], [pad, *tokens[p : n - 1]], tokens[p:]
    if form != "single":
        raise ValueError(f"form {form!r} is unknown")
    targets = [tokens[i + 1] if i + 1 < n else pad for i in range(n)]
    weights = [1 if p <= i + 1 <= n - 1 else 0 for i in range(n)]
    return tokens, p, targets, weights
