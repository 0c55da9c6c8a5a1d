"""The best possible losses of further objectives on text from a Markov chain.

:mod:`support.markov` has the chain itself and the bounds of the causal and the masked language
model. Here are those of the objectives that show a row in pieces. Each is exact: it follows from
the chain rule of entropy, or from Bayes' rule with what is hidden summed out. As there, symbols are
0 … states-1, losses are in nats, and a trained loss below the bound means that the model sees more
than it should. In every formula T is ``source.transition`` and π the stationary distribution.
"""

from collections.abc import Sequence

import numpy as np

from support.markov import MarkovSource

Pieces = Sequence[Sequence[int]]


def _log(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(values)


def _entropy(distribution: np.ndarray) -> float:
    """Entropy of one distribution, an array of any shape that adds up to 1."""
    positive = distribution[distribution > 0]
    return float(-(positive * np.log(positive)).sum())


def _settled(source: MarkovSource) -> np.ndarray:
    """π, provided that the source's samples begin with it."""
    stationary = source.stationary()
    if not np.allclose(source.initial, stationary):
        raise ValueError("defined only for a chain that starts stationary")
    return stationary


def _step_entropies(source: MarkovSource, length: int) -> np.ndarray:
    """H(x_i | x_0 … x_(i-1)), [length]. Only x_(i-1) matters, so it is a mean over that symbol."""
    per_state = np.array([_entropy(row) for row in source.transition])
    out, now = [_entropy(source.initial)], source.initial
    while len(out) < length:
        out.append(float(now @ per_state))
        now = now @ source.transition
    return np.array(out)


# --- likelihoods of a whole row, or of a part of it from left to right --------------------------


def row_entropy(source: MarkovSource, length: int) -> float:
    """H(x_0 … x_(length-1)), the entropy of a row: for a settled chain H(π) + (length-1) · rate.

    It is also the least expected *total* of masked diffusion on rows of ``length`` symbols (Sahoo
    et al. 2024, arXiv:2406.07524; Nie et al. 2025, arXiv:2502.09992), so that its least loss per
    symbol is this divided by ``length``. The total is (m/l) Σ CE over l hidden ones of the m
    symbols, l uniform on 1 … m. In expectation that is Σ_l E[mean over the hidden i of CE(x_i)]:
    the 1/m of drawing l cancels the m, and 1/l makes the sum a mean. Now reveal the row in a
    uniformly random order. When l symbols are still hidden they are a uniformly random set of that
    size and the next one revealed is a uniformly random one of them, so the term of l is the
    expected loss on it; each is at least H(it | all revealed before), and for any order these add
    up to H(row) by the chain rule.
    """
    return float(_step_entropies(source, length).sum())


def prefix_lm_loss(source: MarkovSource, length: int) -> float:
    """Least mean loss per predicted token of a prefix language model (Raffel et al. 2020).

    The split p is uniform on 1 … length-1 and tokens p … length-1 are predicted, each from all to
    its left, as the prefix is never predicted. Token i thus counts with probability i/(length-1),
    that of p <= i. The answer is the expected total over the expected number of predicted tokens,
    what sums over many rows tend to; for a settled chain it is the entropy rate.
    """
    share = np.arange(1, length) / (length - 1)
    return float(share @ _step_entropies(source, length)[1:] / share.sum())


def mtp_loss(source: MarkovSource, length: int, depth: int, *, sees_between: bool = True) -> float:
    """Least mean loss of multi-token prediction at one depth, on tokens depth+1 … length-1.

    Args:
        source: The chain.
        length: Symbols per row.
        depth: 0 for the next token, d for the token d further on.
        sees_between: As DeepSeek-V3's sequential modules (arXiv:2412.19437): to predict token
            i+1+d, depth d has read the embeddings of i+1 … i+d too, so it is next-token prediction
            and reaches the entropy rate of a settled chain. False: independent heads on x_0 … x_i
            (Gloeckle et al. 2024, arXiv:2404.19737), which reach only H(x_(i+1+d) | x_i).
    """
    if sees_between:
        return float(_step_entropies(source, length)[depth + 1 :].mean())
    ahead = np.linalg.matrix_power(source.transition, depth + 1)
    per_state, now, losses = np.array([_entropy(row) for row in ahead]), source.initial, []
    for _ in range(length - 1 - depth):
        losses.append(float(now @ per_state))
        now = now @ source.transition
    return float(np.mean(losses))


# --- span corruption ----------------------------------------------------------------------------


def _check_pieces(source: MarkovSource, segments: Pieces, spans: Pieces) -> None:
    if not spans or len(segments) != len(spans):
        raise ValueError(f"{len(segments)} visible segments but {len(spans)} hidden spans")
    for piece in [*segments, *spans]:
        if len(piece) == 0 or min(piece) < 0 or max(piece) >= source.states:
            raise ValueError(f"not a piece of a row: {piece}")


def span_corruption_nll(source: MarkovSource, segments: Pieces, spans: Pieces) -> float:
    """-log P(targets | encoder inputs) of one row under T5's span corruption, in nats.

    The row is segments[0] spans[0] segments[1] spans[1] … and ends with spans[-1]. The reader knows
    the segments and the number N of hidden symbols (true of rows of one fixed length; if lengths
    vary, two of them can leave as many visible), but not how N is cut into the k spans: a uniformly
    random composition. By Bayes' rule P(targets | inputs) is P(row) over the sum of P(row') over
    all rows' with these segments, for every composition and all hidden symbols. What lies within
    the segments, the first symbol and the probability of a composition cancel. Left are: above, the
    steps into, within and out of the true spans; below, T^(c+1)[last before, first after] for a
    span of c symbols between two segments, and 1 for the last span, which nothing follows. The sum
    over compositions is a recursion over the spans and the number of symbols used so far.

    The sequence is sentinels and all: whatever is certain, such as the first sentinel and the
    final end, adds nothing. The loss per target is this over N + k + 1.
    """
    _check_pieces(source, segments, spans)
    log_step = _log(source.transition)
    hidden = sum(len(span) for span in spans)
    truth = 0.0
    for j, span in enumerate(spans):
        path = [segments[j][-1], *span, *(segments[j + 1][:1] if j + 1 < len(spans) else [])]
        truth += sum(log_step[a, b] for a, b in zip(path[:-1], path[1:], strict=True))
    # used[m]: log weight of all ways for the spans so far to hold m symbols together.
    used = np.append(0.0, np.full(hidden, -np.inf))
    log_powers = [_log(np.linalg.matrix_power(source.transition, c)) for c in range(hidden + 2)]
    for before, after in zip(segments[:-1], segments[1:], strict=True):
        longer = np.full(hidden + 1, -np.inf)
        for c in range(1, hidden + 1):
            way = used[: hidden + 1 - c] + log_powers[c + 1][before[-1], after[0]]
            longer[c:] = np.logaddexp(longer[c:], way)
        used = longer
    # The last span holds the rest, at least one symbol.
    return float(np.logaddexp.reduce(used[:hidden]) - truth)


def span_corruption_nll_by_token(
    source: MarkovSource, segments: Pieces, spans: Pieces
) -> np.ndarray:
    """What each target adds to :func:`span_corruption_nll`, given the inputs and earlier targets.

    The targets are sentinel 0, the symbols of span 0, sentinel 1, …, and the end: [N + k + 1]. A
    sentinel or the end says that the span before it is over. The recursion runs from the right, so
    that it also checks the other one.
    """
    _check_pieces(source, segments, spans)
    step, count, hidden = source.transition, len(spans), sum(len(span) for span in spans)
    # inside[j][r, s]: weight of all that can follow symbol s of span j with r hidden symbols left;
    # ends[j][r, s]: that of the span ending with s. Both up to a factor that is j's own.
    inside, ends = [np.empty(0)] * count, [np.empty(0)] * count
    begins = np.append(1.0, np.zeros(hidden))  # the end: nothing must be left
    for j in reversed(range(count)):
        into_next = step[:, segments[j + 1][0]] if j + 1 < count else np.ones(source.states)
        ends[j] = begins[:, None] * into_next
        inside[j] = ends[j].copy()
        for r in range(1, hidden + 1):
            inside[j][r] += step @ inside[j][r - 1]
        # begins[r]: the weight of spans j, j+1, … with r hidden symbols left, of which span j
        # takes one at least. Scaled lest a long row underflow.
        begins = np.append(0.0, inside[j][:-1] @ step[segments[j][-1]])
        begins = begins / (begins.max() or 1.0)
    out, left = [0.0], hidden
    with np.errstate(invalid="ignore", divide="ignore"):
        for j, span in enumerate(spans):
            before = segments[j][-1]
            for index, symbol in enumerate(span):
                ways = step[before] * inside[j][left - 1]  # of the symbol, if it is not the end
                total = ways.sum() if index == 0 else inside[j][left, before]
                out.append(-np.log(ways[symbol] / total))
                before, left = symbol, left - 1
            out.append(-np.log(ends[j][left, before] / inside[j][left, before]))
    return np.array(out)


# --- pairs of segments --------------------------------------------------------------------------


def _bayes(real: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Error and cross-entropy of the best classifier between two equally likely labels.

    Args:
        real: P(shown | label 0), an array over all that can be shown.
        other: P(shown | label 1), same shape.
    """
    error = np.minimum(real, other).sum() / 2
    # H(label | shown) = H(label, shown) - H(shown)
    loss = _entropy(np.stack([real, other]) / 2) - _entropy((real + other) / 2)
    return float(error), loss


def _nsp_junctions(source: MarkovSource) -> tuple[np.ndarray, np.ndarray]:
    """P(last of A, first of B | label), [states, states] each, for the labels 0 and 1."""
    stationary = _settled(source)
    return stationary[:, None] * source.transition, np.outer(stationary, stationary)


def nsp_posterior(source: MarkovSource, last: np.ndarray, first: np.ndarray) -> np.ndarray:
    """P(label 1, "random" | the pair) of next-sentence prediction (Devlin et al. 2019).

    B is what follows A, or as much from the middle of another document, equally often. The labels
    differ only in P(first of B | last of A): T[last, first], or π[first] because another row has
    settled and is independent. All else cancels, if neither the cut nor the length of B depends on
    the label or on the text: no symbol of the chain may end a sentence, and every row must have a
    partner.

    Args:
        source: A settled chain.
        last: Last symbol of A, any shape.
        first: First symbol of B, same shape.
    """
    real, other = _nsp_junctions(source)
    with np.errstate(invalid="ignore"):
        return (other / (real + other))[last, first]


def nsp_bayes_error(source: MarkovSource) -> float:
    """How often the best classifier of :func:`nsp_posterior`'s pairs errs."""
    return _bayes(*_nsp_junctions(source))[0]


def nsp_bayes_loss(source: MarkovSource) -> float:
    """Expected cross-entropy of the best classifier of :func:`nsp_posterior`'s pairs."""
    return _bayes(*_nsp_junctions(source))[1]


def sop_posterior(source: MarkovSource, first: Sequence[int], second: Sequence[int]) -> float:
    """P(label 1, "swapped" | both parts) of sentence-order prediction (Lan et al. 2020).

    A whole row is cut at a place uniform on 1 … length-1, and the parts are swapped half of the
    time. The lengths shown are as likely under both labels, and the steps within the parts are the
    same. Left is P(first symbol of the row) times the step from one part to the other. As for
    :func:`nsp_posterior`, no symbol may end a sentence.
    """
    kept = source.initial[first[0]] * source.transition[first[-1], second[0]]
    swapped = source.initial[second[0]] * source.transition[second[-1], first[0]]
    return float(swapped / (kept + swapped))


def _sop_bayes(source: MarkovSource, length: int) -> np.ndarray:
    """Error and cross-entropy of :func:`sop_posterior`, exact.

    Of each part only its two ends matter, so the sum runs over those four symbols and the cuts.
    """
    start, step, total = source.initial, source.transition, np.zeros(2)
    powers = [np.linalg.matrix_power(step, n) for n in range(length - 1)]
    for size in range(1, length):  # of the part shown first
        a, b = powers[size - 1], powers[length - size - 1]
        # Shown: ends i … j of the first part and k … l of the second.
        kept = np.einsum("i,ij,jk,kl->ijkl", start, a, step, b)
        swapped = np.einsum("k,kl,li,ij->ijkl", start, b, step, a)
        total += _bayes(kept, swapped)
    return total / (length - 1)


def sop_bayes_error(source: MarkovSource, length: int) -> float:
    """How often the best classifier of :func:`sop_posterior` errs on rows of ``length``."""
    return float(_sop_bayes(source, length)[0])


def sop_bayes_loss(source: MarkovSource, length: int) -> float:
    """Expected cross-entropy of the best classifier of :func:`sop_posterior`."""
    return float(_sop_bayes(source, length)[1])
