"""Text whose best possible losses are known: a first-order Markov chain over a small alphabet.

A model trained on samples of the chain can reach, and never beat, the losses computed here. What
makes them exact is that a chain has a forward-backward algorithm: the posterior of a hidden symbol
given everything the model is shown. A trained loss *below* the bound of what the objective lets
the model see means that it sees more than it should; one that settles at the bound of a poorer
view (``sees="left"``, or the unigram entropy) means that it sees less.

Symbols are 0 … states-1; a test adds the number of special pieces. All entropies and losses
are in nats.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from support.mlm_reference import number_predicted

View = Literal["both", "left"]


class Estimate(NamedTuple):
    """A Monte-Carlo mean and its standard error."""

    mean: float
    standard_error: float


@dataclass(frozen=True, kw_only=True)
class Channel:
    """What BERT shows of a row of which exactly ``predicted`` symbols are to be predicted.

    The predicted positions are a uniformly random subset of that size, unknown to the model unless
    they show [MASK]. Each shows [MASK] with probability ``mask_share``, a uniformly random symbol
    with ``random_share`` and the original otherwise; the other positions show the original.
    """

    predicted: int
    mask_share: float = 0.8
    random_share: float = 0.1


def _log(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(values)


def _log_sum(values: np.ndarray, axis: int, keepdims: bool = False) -> np.ndarray:
    """log Σ exp, and -inf for a sum of nothing but -inf."""
    top = np.max(values, axis=axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    total = _log(np.exp(values - top).sum(axis=axis, keepdims=True)) + top
    return total if keepdims else np.squeeze(total, axis=axis)


def _log_step(message: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """log(exp(message) @ matrix) along the last axis."""
    top = np.max(message, axis=-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    return _log(np.exp(message - top) @ matrix) + top


def _entropy(distribution: np.ndarray) -> np.ndarray:
    """Entropy along the last axis."""
    positive = np.where(distribution > 0, distribution, 1.0)
    return -(distribution * np.log(positive)).sum(axis=-1)


def _sweep(
    start: np.ndarray, matrix: np.ndarray, plain: np.ndarray, asked: np.ndarray, most: int
) -> np.ndarray:
    """One direction of forward-backward, in log space.

    Args:
        start: Log weight of each state at the first position, [states].
        matrix: Weight of going from one position's state to the next one's, [states, states].
        plain: log P(shown | state, not predicted), [rows, length, states].
        asked: log P(shown | state, predicted), same shape.
        most: Greatest number of predicted positions to keep account of.

    Returns:
        [rows, length, most + 1, states]: log weight of a state at a position together with all
        that is shown at the positions swept *before* it, of which so many are predicted.
    """
    rows, length, states = plain.shape
    out = np.full((rows, length, most + 1, states), -np.inf)
    out[:, 0, 0] = start
    for here in range(length - 1):
        joint = out[:, here] + plain[:, here, None]
        joint[:, 1:] = np.logaddexp(joint[:, 1:], out[:, here, :-1] + asked[:, here, None])
        out[:, here + 1] = _log_step(joint, matrix)
    return out


class MarkovSource:
    """A first-order Markov chain.

    Args:
        transition: P(next | this), [states, states]; the rows add up to 1.
        initial: Distribution of a sample's first symbol, [states]; the stationary one if None.
    """

    def __init__(self, transition: np.ndarray, initial: np.ndarray | None = None):
        self.transition = np.asarray(transition, np.float64)
        self.states = len(self.transition)
        if self.transition.shape != (self.states, self.states):
            raise ValueError(f"transition is not square: {self.transition.shape}")
        if (self.transition < 0).any() or not np.allclose(self.transition.sum(axis=1), 1):
            raise ValueError("the rows of transition are not distributions")
        self.initial = self.stationary() if initial is None else np.asarray(initial, np.float64)

    @classmethod
    def random(cls, states: int, seed: int, concentration: float) -> "MarkovSource":
        """A chain with Dirichlet rows; the smaller the concentration, the more predictable."""
        rng = np.random.default_rng(seed)
        return cls(rng.dirichlet(np.full(states, concentration), size=states))

    def stationary(self) -> np.ndarray:
        """The distribution that the chain settles to, [states] (it must have only one)."""
        equations = np.vstack([self.transition.T - np.eye(self.states), np.ones(self.states)])
        wanted = np.append(np.zeros(self.states), 1.0)
        solution = np.linalg.lstsq(equations, wanted, rcond=None)[0].clip(0)
        return solution / solution.sum()

    def sample(self, rng: np.random.Generator, length: int, rows: int) -> np.ndarray:
        """Independent samples, int64 [rows, length]."""
        uniform = rng.random((rows, length, 1))
        # The last sum is forced to 1 so that rounding can never yield a symbol past the end.
        first, following = np.cumsum(self.initial), np.cumsum(self.transition, axis=1)
        first[-1], following[:, -1] = 1.0, 1.0
        out = np.empty((rows, length), np.int64)
        for here in range(length):
            bounds = first if here == 0 else following[out[:, here - 1]]
            out[:, here] = (uniform[:, here] >= bounds).sum(axis=-1)
        return out

    def entropy_rate(self) -> float:
        """Nats per symbol of the settled chain: the least causal loss."""
        return float(self.stationary() @ _entropy(self.transition))

    def unigram_entropy(self) -> float:
        """Entropy of one symbol of the settled chain: the least loss that sees no other symbol."""
        return float(_entropy(self.stationary()))

    def causal_loss(self, length: int) -> float:
        """Least expected mean loss on symbols 1 … length-1, each given all to its left. Exact."""
        per_state, now, total = _entropy(self.transition), self.initial, 0.0
        for _ in range(length - 1):
            total += float(now @ per_state)
            now = now @ self.transition
        return total / (length - 1)

    def posterior(
        self,
        inputs: np.ndarray,
        hidden: np.ndarray,
        channel: Channel | None = None,
        *,
        sees: View = "both",
    ) -> np.ndarray:
        """Exact distribution of every symbol given what the model is shown.

        Args:
            inputs: Shown symbols, int [length] or [rows, length]; ignored where ``hidden``.
            hidden: Positions that show [MASK], bool, same shape.
            channel: None: what is shown is true. Otherwise a shown symbol may be a random one, and
                entry i of the result is the distribution *given that position i is among the
                predicted ones*, which is what a loss at predicted positions asks for.
            sees: "both", or "left": only what is shown before the position itself.

        Returns:
            float64, the shape of ``inputs`` with [states] appended. Entry i is NaN if what is
            shown is impossible, such as position i predicted where the channel never keeps.
        """
        shape = np.shape(inputs)
        inputs, hidden = np.atleast_2d(inputs), np.atleast_2d(hidden).astype(bool)
        same = np.where(hidden, 0, inputs)[..., None] == np.arange(self.states)
        if channel is None:
            plain = np.where(hidden[..., None], 0.0, _log(same.astype(float)))
            asked, most = np.full_like(plain, -np.inf), 0
        else:
            random, kept = channel.random_share, 1 - channel.mask_share - channel.random_share
            plain = _log(same & ~hidden[..., None])
            at_hidden, at_shown = channel.mask_share, random / self.states + kept * same
            asked = _log(np.where(hidden[..., None], at_hidden, at_shown))
            most = channel.predicted
        before = _sweep(_log(self.initial), self.transition, plain, asked, most)
        if sees == "left":
            if channel is not None:
                raise ValueError("sees='left' is defined only without a channel")
            result = before[:, :, 0]
        else:
            # The same sweep from the right: P(all that follows | state), by the transposed matrix.
            after = _sweep(
                np.zeros(self.states), self.transition.T, plain[:, ::-1], asked[:, ::-1], most
            )[:, ::-1]
            if channel is None:
                result = before[:, :, 0] + plain + after[:, :, 0]
            else:
                # This position is predicted, so the others share the remaining predictions.
                pairs = before[:, :, :most] + after[:, :, :most][:, :, ::-1]
                result = _log_sum(pairs, axis=2) + asked
        with np.errstate(invalid="ignore"):
            result = np.exp(result - _log_sum(result, axis=-1, keepdims=True))
        return result.reshape(*shape, self.states)

    def masked_entropy(
        self,
        rng: np.random.Generator,
        length: int,
        rate: float,
        rows: int,
        *,
        channel: Channel | None = None,
        sees: View = "both",
        estimator: Literal["entropy", "nll"] = "entropy",
    ) -> Estimate:
        """Least mean loss per predicted symbol of a masked language model, by simulation.

        Each row is a fresh sample in which ``number_predicted(rate, length)`` positions, drawn
        without replacement, are predicted. The posterior of each is exact, so the only error is
        that of the samples.

        Args:
            rng: Source of randomness.
            length: Symbols per row, all of them maskable.
            rate: Share of them to predict.
            rows: Number of rows.
            channel: None: every predicted position shows [MASK] (``mask_share=1``). Otherwise how
                it is shown; ``channel.predicted`` must be the number predicted.
            sees: "both", or "left" for a predictor that sees only what precedes the position.
            estimator: "entropy" of the posterior, the expectation of "nll", which is minus the log
                posterior of the true symbol: the same mean with more noise.
        """
        count = number_predicted(rate, length)
        if channel is not None and channel.predicted != count:
            raise ValueError(f"{count} of {length} are predicted, not {channel.predicted}")
        truth = self.sample(rng, length, rows)
        predicted = rng.random((rows, length)).argsort(axis=1) < count
        inputs, hidden = truth, predicted
        if channel is not None:
            decision = rng.random((rows, length))
            hidden = predicted & (decision < channel.mask_share)
            other = predicted & ~hidden & (decision < channel.mask_share + channel.random_share)
            inputs = np.where(other, rng.integers(self.states, size=truth.shape), truth)
        posterior = self.posterior(inputs, hidden, channel, sees=sees)
        if estimator == "entropy":
            loss = _entropy(posterior)
        else:
            loss = -_log(np.take_along_axis(posterior, truth[..., None], axis=-1)[..., 0])
        per_row = np.where(predicted, loss, 0.0).sum(axis=1) / count
        return Estimate(float(per_row.mean()), float(per_row.std(ddof=1) / math.sqrt(rows)))

    def causal_only_masked_entropy(
        self, rng: np.random.Generator, length: int, rate: float, rows: int
    ) -> Estimate:
        """:meth:`masked_entropy` of a predictor that sees only the left: the filter's loss.

        What a masked language model would reach if its attention were causal by mistake. A
        predictor that sees neither side reaches :meth:`unigram_entropy`.
        """
        return self.masked_entropy(rng, length, rate, rows, sees="left")

    def _gap_entropy(self, left: int | None, right: int | None) -> float:
        """H(x | the nearest shown symbols ``left`` before it and ``right`` after it).

        None: nothing is shown on that side. The chain is settled.
        """
        now = self.stationary()
        if left is None:
            joint = now[None, :]
        else:
            joint = now[:, None] * np.linalg.matrix_power(self.transition, left)
        if right is None:
            joint = joint[..., None]
        else:
            joint = joint[..., None] * np.linalg.matrix_power(self.transition, right)
        # joint is [left symbol, x, right symbol]; H(x | both) = H(all three) - H(left, right).
        return float(_entropy(joint.ravel()) - _entropy(joint.sum(axis=1).ravel()))

    def _require_settled(self) -> None:
        if not np.allclose(self.initial, self.stationary()):
            raise ValueError("the closed form holds only for a chain that starts stationary")

    def two_sided_entropy(self, hidden: np.ndarray, *, sees: View = "both") -> float:
        """Least expected mean loss on the hidden positions of one given mask. Exact.

        Given the nearest shown symbol on either side nothing further away matters, so the answer
        is a mean of conditional entropies H(x | symbol a before, symbol b after).

        Args:
            hidden: Positions that show [MASK], bool [length]; all others are shown as they are.
            sees: As in :meth:`posterior`.
        """
        self._require_settled()
        shown = np.flatnonzero(~np.asarray(hidden, bool))
        total, cache = 0.0, {}
        for here in np.flatnonzero(hidden):
            left = here - shown[shown < here].max() if (shown < here).any() else None
            right = shown[shown > here].min() - here if (shown > here).any() else None
            gap = (left, right if sees == "both" else None)
            if gap not in cache:
                cache[gap] = self._gap_entropy(*gap)
            total += cache[gap]
        return total / int(np.sum(hidden))

    def exact_masked_entropy(self, length: int, rate: float, *, sees: View = "both") -> float:
        """What :meth:`masked_entropy` without a channel estimates, in closed form.

        The mean of :meth:`two_sided_entropy` over all masks with ``number_predicted`` positions,
        grouped by the run of hidden positions around each: a run of r with its shown neighbours
        inside the row leaves C(length - r - neighbours, count - r) ways to place the rest.
        """
        self._require_settled()
        count = number_predicted(rate, length)
        ways, total = math.comb(length, count), 0.0
        cache: dict[tuple[int | None, int | None], float] = {}
        for start in range(length):
            for stop in range(start + 1, min(start + count, length) + 1):
                neighbours = (start > 0) + (stop < length)
                free, run = length - (stop - start) - neighbours, stop - start
                if free < count - run:
                    continue
                share = math.comb(free, count - run) / ways
                for here in range(start, stop):
                    left = here - start + 1 if start > 0 else None
                    right = stop - here if stop < length else None
                    gap = (left, right if sees == "both" else None)
                    if gap not in cache:
                        cache[gap] = self._gap_entropy(*gap)
                    total += share * cache[gap]
        return total / count
