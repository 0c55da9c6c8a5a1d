"""Reads sources whole, and checks the messages of those that cannot be read."""

from collections import Counter

import pytest

from jaxpretrain.errors import UserError


def read(source):
    skipped = Counter()
    documents = [d for part in source.parts() for d in part.documents(skipped)]
    return documents, skipped


def texts(source):
    documents, skipped = read(source)
    assert not skipped
    return [d.text for d in documents]


def fails(source, *words):
    """Reading must raise a UserError of one line that has all the words."""
    with pytest.raises(UserError) as caught:
        read(source)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
