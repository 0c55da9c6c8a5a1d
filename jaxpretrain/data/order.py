"""Which row does position i of the training stream read? A pure function of (seed, i).

The one idea: shuffling needs no buffer and no state when the permutation of an epoch can be asked
for one index at a time. ``permute`` is such a permutation (a keyed Feistel network), and ``Order``
uses one for each epoch. So a run resumes at any step at no cost, and the order is the same for any
number of processes: each asks for the positions of its own slice.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from jaxpretrain.errors import UserError

BLOCK = 1024  # stream rows within which a weighted mixture is exact
_ROUNDS = 12  # 8 do for large sizes; with 12 even the 5! orders of five rows are as likely
_GOLDEN = 0x9E3779B97F4A7C15
_ROUND_STEP = 0xD1342543DE82EF95  # far apart, so that no two rounds hash the same number
_BLOCK_KEY = 2**64 - 1  # stands where a set's number stands in other keys


def _mix(x: np.ndarray) -> np.ndarray:
    """Returns the outputs of SplitMix64 (Steele, Lea & Flood 2014) for the states x, uint64 [n]."""
    x = x + _GOLDEN
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


def _key(seed: int, set_index: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Returns one uint64 key for each pair (set, epoch), or (_BLOCK_KEY, block)."""
    root = _mix(np.array([seed % 2**64], np.uint64))
    return _mix(_mix(root + set_index.astype(np.uint64)) + number.astype(np.uint64))


def _feistel(index: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Permutes range(a * b), where a * b is a near-square product that just holds size.

    Writing index as (left, right) with left < a and right < b, each round adds a hash of one half
    to the other, modulo a or b: a bijection whatever the hash is.
    """
    a = np.ceil(np.sqrt(size)).astype(np.uint64)
    b = (size + 2 * a - 1) // (2 * a) * 2  # even, or every permutation would be an even one
    left, right = np.divmod(index, b)
    for number in range(_ROUNDS):
        round_key = key + (number * _ROUND_STEP) % 2**64
        # The top 53 bits, so that the sum cannot wrap; modulo a or b they are as good as uniform.
        if number % 2 == 0:
            left = (left + (_mix(right + round_key) >> 11)) % a
        else:
            right = (right + (_mix(left + round_key) >> 11)) % b
    return left * b + right


def permute(index: np.ndarray, size: int | np.ndarray, key: int | np.ndarray) -> np.ndarray:
    """Returns where a keyed pseudo-random permutation of range(size) sends each index.

    A 12-round Feistel network over a near-square product a * b >= size. Results that fall outside
    range(size) are permuted again until they fall inside ("cycle walking"), which keeps it a
    bijection; that happens to fewer than 2 in sqrt(size) indices, so the cost of an index does not
    depend on size or index.

    Args:
        index: integers in [0, size), any shape.
        size: one size, or one for each index; 1 <= size < 2**52.
        key: one key, or one (uint64) for each index.

    Returns:
        int64, the shape of index.

    References:
        Black & Rogaway, Ciphers with arbitrary finite domains (CT-RSA 2002).
    """
    index = np.asarray(index)
    shape = index.shape
    index = index.reshape(-1).astype(np.uint64)
    if isinstance(key, int):
        key = np.uint64(key % 2**64)
    size = np.broadcast_to(np.asarray(size, np.uint64).reshape(-1), index.shape)
    key = np.broadcast_to(np.asarray(key, np.uint64).reshape(-1), index.shape)
    result = _feistel(index, size, key)
    while (outside := np.flatnonzero(result >= size)).size:
        result[outside] = _feistel(result[outside], size[outside], key[outside])
    return result.astype(np.int64).reshape(shape)


class Order:
    """The order in which the rows of one or more sets are read, forever.

    Without weights the sets are one long set: every epoch is a permutation of all rows, so each
    set is read at the same rate. With weights the stream is cut into blocks of 1024 rows. Every
    set has its exact share of every block, at places that a permutation of the block chooses, and
    runs through epochs of its own: small sets with large weights repeat more often.

    Within an epoch of a set every row comes exactly once, and each epoch has its own order.
    """

    def __init__(
        self,
        rows_per_set: Sequence[int],
        weights: Sequence[float] | None,
        seed: int,
        *,
        names: Sequence[str] | None = None,
    ):
        """Checks the sizes and weights.

        Args:
            rows_per_set: how many rows each set has.
            weights: how often each set is read, relative to the others; None: by its rows.
            seed: any integer.
            names: what to call the sets in messages.

        Raises:
            UserError: there is no set, a set has no rows, or a weight is not a positive number or
                is too small for one row in 1024.
        """
        if len(rows_per_set) == 0:
            raise UserError("there is no set to read rows from")
        names = [f"set {i}" for i in range(len(rows_per_set))] if names is None else names
        for name, rows in zip(names, rows_per_set, strict=True):
            if rows < 1:
                raise UserError(f"{name!r} has 0 rows: leave it out, or prepare more text for it")
        self.seed = seed
        self.rows_per_set = np.array(rows_per_set, np.int64)
        self._rows_before = np.cumsum(self.rows_per_set) - self.rows_per_set
        self.block_shares = None
        if weights is not None:
            self.block_shares = np.array(_block_shares(weights, names), np.int64)
            self._shares_before = np.cumsum(self.block_shares) - self.block_shares

    def locate(self, stream_index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Finds the rows at some positions of the stream; each costs the same, wherever it is.

        Args:
            stream_index: int64 [n], not negative.

        Returns:
            set_index, epoch and row, int64 [n] each; row counts within its set.
        """
        stream_index = np.asarray(stream_index, np.int64)
        if self.block_shares is None:
            total = int(self.rows_per_set.sum())
            epoch, index = np.divmod(stream_index, total)
            row = permute(index, total, _key(self.seed, np.zeros_like(epoch), epoch))
            set_index = np.searchsorted(self._rows_before, row, "right") - 1
            return set_index, epoch, row - self._rows_before[set_index]

        block, index = np.divmod(stream_index, BLOCK)
        slot = permute(index, BLOCK, _key(self.seed, np.array([_BLOCK_KEY], np.uint64), block))
        set_index = np.searchsorted(self._shares_before, slot, "right") - 1
        index = block * self.block_shares[set_index] + slot - self._shares_before[set_index]
        rows = self.rows_per_set[set_index]
        epoch, index = np.divmod(index, rows)
        return set_index, epoch, permute(index, rows, _key(self.seed, set_index, epoch))


def _block_shares(weights: Sequence[float], names: Sequence[str]) -> list[int]:
    """Divides the BLOCK rows of a block by weight, by the method of largest remainders."""
    if len(weights) != len(names):
        raise UserError(f"{len(weights)} weights for {len(names)} sets: give one weight for each")
    for name, weight in zip(names, weights, strict=True):
        if not 0 < weight < float("inf"):
            raise UserError(
                f"the weight of {name!r} is {weight}: it must be a number above 0 "
                "(leave the set out if nothing should be read from it)"
            )
    # As decimal fractions, so that (.1, .2) and (1, 2) are the same mixture.
    exact = [Fraction(repr(float(weight))) for weight in weights]
    quotas = [weight * BLOCK / sum(exact) for weight in exact]
    shares = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda i: shares[i] - quotas[i])
    for i in by_remainder[: BLOCK - sum(shares)]:
        shares[i] += 1
    for name, weight, share in zip(names, weights, shares, strict=True):
        if share == 0:
            raise UserError(
                f"the weight of {name!r}, {weight} of {float(sum(exact)):g}, is less than one row "
                f"in {BLOCK}: raise it to {float(sum(exact) / BLOCK):.2g} or leave the set out"
            )
    return shares
