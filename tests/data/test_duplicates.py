"""Near-duplicate documents, against documents that were made to share a known part."""

import numpy as np
import pytest

from jaxpretrain.data.duplicates import near_duplicates
from support.memory_set import FIRST, MemorySet


def documents(count: int, length: int = 600, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return rng.integers(FIRST, 5000, (count, length)).tolist()


def test_documents_of_their_own_have_no_duplicates_and_copies_are_all_found():
    own = documents(30)
    assert near_duplicates([MemorySet("a", own)]) == 0
    assert near_duplicates([MemorySet("a", own + own[:6])]) == pytest.approx(12 / 36)
    # In another source too.
    assert near_duplicates([MemorySet("a", own), MemorySet("b", own[:6])]) == pytest.approx(12 / 36)


@pytest.mark.parametrize(
    ("share", "found"), [(0.8, True), (0.65, True), (0.35, False), (0.2, False)]
)
def test_half_of_the_shingles_is_the_limit(share, found):
    own = documents(40, length=2000)
    other = documents(40, length=2000, seed=1)
    cut = int(share * 2000)
    changed = [a[:cut] + b[cut:] for a, b in zip(own, other, strict=True)]
    value = near_duplicates([MemorySet("a", own + changed)])
    assert (value > 0.9) if found else (value < 0.1)


def test_a_short_document_within_a_long_one_is_a_duplicate_of_it():
    own = documents(20, length=2000)
    parts = [document[300:900] for document in own[:5]]
    assert near_duplicates([MemorySet("a", own + parts)]) == pytest.approx(10 / 25)


def test_too_short_documents_tell_nothing():
    assert near_duplicates([MemorySet("a", documents(50, length=14))]) is None
    assert near_duplicates([MemorySet("a", documents(1))]) is None


def test_boilerplate_that_many_share_makes_no_duplicates():
    licence = documents(1, length=500, seed=3)[0]
    own = [licence + document for document in documents(80, length=300)]
    assert near_duplicates([MemorySet("a", own)]) == 0
