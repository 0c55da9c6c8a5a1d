"""A token set in memory, with the contract of `jaxpretrain.data.store.TokenSet`."""

import numpy as np

BOS, EOS, PAD = 2, 3, 0
FIRST = 10  # content tokens start here


class MemorySet:
    """Documents laid end to end, each as [bos] content [eos]."""

    def __init__(self, name: str, documents: list[list[int]], dtype=np.uint16):
        self.name = name
        self.contents = [list(document) for document in documents]
        stored = [[BOS, *document, EOS] for document in self.contents]
        self.tokens = np.array([token for document in stored for token in document], dtype)
        self.tokens_total = len(self.tokens)
        self.documents = len(stored)
        self.doc_ends = np.cumsum([len(document) for document in stored], dtype=np.int64)

    def read(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start < stop <= self.tokens_total, (start, stop, self.tokens_total)
        return self.tokens[start:stop]


def random_set(name: str, documents: int, longest: int, seed: int = 0) -> MemorySet:
    """Returns a set of documents of 0 … longest tokens."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, documents)
    return MemorySet(name, [list(rng.integers(FIRST, 1000, length)) for length in lengths])
