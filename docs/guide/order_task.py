"""Writes the task of step 4 of the guide: are the words of a sentence in order?

    python docs/guide/order_task.py

makes runs/tasks/order/ with train.jsonl, dev.jsonl and test.jsonl. The sentences are those of
Python's own language reference. Each is there twice, as it is and with two neighbouring words
swapped, so that no word tells the two kinds apart: only the order does.
"""

import json
import pydoc_data.topics
import random
import re
from pathlib import Path

FOLDER = Path("runs/tasks/order")


def sentences() -> list[str]:
    """Sentences of 6 to 25 words, each once, in an order that is always the same."""
    text = " ".join(" ".join(pydoc_data.topics.topics.values()).split())
    found = re.split(r"(?<=[a-z][.]) (?=[A-Z])", text)
    plain = {one for one in found if re.fullmatch(r"[A-Z][a-z]*( [a-zA-Z,’*()_-]+)+[.]", one)}
    kept = sorted(one for one in plain if 6 <= len(one.split()) <= 25)
    random.Random(0).shuffle(kept)
    return kept


def swapped(sentence: str, place: random.Random) -> str:
    """The sentence with two unlike neighbours swapped, neither the first nor the last word."""
    words = sentence.split()
    at = place.choice([n for n in range(1, len(words) - 2) if words[n] != words[n + 1]])
    words[at], words[at + 1] = words[at + 1], words[at]
    return " ".join(words)


def main() -> None:
    """Writes the three files: 60 % to train on, 10 % to choose by, 30 % to test on."""
    place = random.Random(1)
    pairs = [
        [{"text": text, "label": "right"}, {"text": swapped(text, place), "label": "swapped"}]
        for text in sentences()
    ]
    first, second = len(pairs) * 6 // 10, len(pairs) * 7 // 10
    splits = {"train": pairs[:first], "dev": pairs[first:second], "test": pairs[second:]}
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, part in splits.items():
        lines = [json.dumps(row) + "\n" for pair in part for row in pair]
        (FOLDER / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{FOLDER}/{name}.jsonl: {len(lines)} rows")


if __name__ == "__main__":
    main()
