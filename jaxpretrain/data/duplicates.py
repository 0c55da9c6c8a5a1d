"""Near-duplicate documents of a token store, by the shingles that they share."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from jaxpretrain.data.store import TokenSet

SHINGLE = 13  # tokens
KEPT = 8  # one shingle in so many is looked at, the same ones in every document
SHARED = 0.5  # of the smaller one's shingles
FEWEST = 4  # shingles of a document that tell anything
COMMON = 50  # documents that have a shingle, beyond which it is boilerplate


def near_duplicates(sets: Sequence[TokenSet], most: int = 5000) -> float | None:
    """The share of documents that have half or more of their shingles in common with another.

    A shingle is 13 tokens in a row (Lee et al. 2022, arXiv:2107.06499, count n-grams likewise). One
    in eight is looked at, chosen by its hash; documents with fewer than 4 of these are left out.

    Args:
        sets: of one split.
        most: documents, the first of each set in equal number.

    Returns:
        None where fewer than two documents are long enough.
    """
    sketches = []
    for token_set in sets:
        ends = token_set.doc_ends[: most // len(sets)]
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        for start, end in zip(starts, ends, strict=True):
            sketch = _sketch(token_set.read(int(start), int(end)))
            if len(sketch) >= FEWEST:
                sketches.append(sketch)
    if len(sketches) < 2:
        return None
    owners = defaultdict(list)
    for number, sketch in enumerate(sketches):
        for shingle in sketch.tolist():
            owners[shingle].append(number)
    shared: Counter = Counter()
    for found in owners.values():
        if 2 <= len(found) <= COMMON:
            shared.update((a, b) for at, a in enumerate(found) for b in found[at + 1 :])
    doubled = set()
    for (a, b), count in shared.items():
        if count >= SHARED * min(len(sketches[a]), len(sketches[b])):
            doubled |= {a, b}
    return len(doubled) / len(sketches)


def _sketch(tokens: np.ndarray) -> np.ndarray:
    """Hashes of the shingles that are looked at, each once."""
    if len(tokens) < SHINGLE:
        return np.zeros(0, np.uint64)
    hashes = np.zeros(len(tokens) - SHINGLE + 1, np.uint64)
    for at in range(SHINGLE):  # modulo 2**64
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + tokens[
            at : len(tokens) - SHINGLE + 1 + at
        ].astype(np.uint64)
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    return np.unique(hashes[(hashes >> np.uint64(32)) % np.uint64(KEPT) == 0])
