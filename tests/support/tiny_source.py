"""A source of texts given in the test itself; a module, so that worker processes can import it."""

import hashlib
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxpretrain.data.sources_base import Document
from jaxpretrain.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TinyPart:
    """Texts; an item that begins with ``!`` is skipped for the reason that follows it, and one with
    ``!!`` is an error."""

    name: str
    texts: tuple[str, ...]
    pause: float = 0.0  # seconds before each text, in a worker process
    note: str = ""  # a file that gets a line when the part is read
    deadly: str = ""  # the name of a part that kills the worker process that reads it

    def fingerprint(self) -> str:
        return hashlib.sha256(repr((self.name, self.texts)).encode(errors="replace")).hexdigest()

    def documents(self, skipped: Counter) -> Iterator[Document]:
        is_worker = multiprocessing.parent_process() is not None
        if is_worker and self.name == self.deadly:
            os._exit(9)
        if self.note:
            with Path(self.note).open("a") as file:
                file.write(f"{self.name}\n")
        for number, text in enumerate(self.texts):
            time.sleep(self.pause if is_worker else 0)
            if text.startswith("!!"):
                raise UserError(f"{self.name}:{number + 1}: {text[2:]}")
            if text.startswith("!"):
                skipped[text[1:]] += 1
            else:
                yield Document(text.encode(), f"{self.name}:{number + 1}")


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """Parts of texts, ``part-0`` first."""

    texts: tuple[tuple[str, ...], ...]
    pause: float = 0.0
    note: str = ""
    deadly: str = ""

    def parts(self) -> list[TinyPart]:
        return [
            TinyPart(
                name=f"part-{number}",
                texts=texts,
                pause=self.pause,
                note=self.note,
                deadly=self.deadly,
            )
            for number, texts in enumerate(self.texts)
        ]


def topics(parts: int, limit: int = 80) -> tuple[tuple[str, ...], ...]:
    """Real English: the first topics of Python's own documentation, dealt out to parts."""
    from pydoc_data.topics import topics as documentation

    texts = [documentation[key] for key in sorted(documentation)][:limit]
    return tuple(tuple(texts[number::parts]) for number in range(parts))
