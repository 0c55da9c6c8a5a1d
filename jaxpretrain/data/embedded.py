"""The default corpus: the documentation of the Python that runs this, on every machine.

The language reference topics of `pydoc_data.topics` and the docstrings of the standard library.
Everything is read with `ast` from the source files: no module is imported, no code runs.
"""

import ast
import hashlib
import inspect
import os
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

from jaxpretrain.data.sources_base import Document, digest
from jaxpretrain.errors import UserError

PARTS = 16
TOPICS = "pydoc_data/topics.py"
# Tests, demonstrations and a hundred generated character tables are no documentation; the rest is
# not the standard library.
LEFT_OUT = {"idle_test", "test", "tests", "turtledemo", "encodings"} | {
    "__pycache__",
    "dist-packages",
    "lib-dynload",
    "site-packages",
}
REPEATED_SHARE = 0.5
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
BLOCKS = (ast.stmt, ast.ExceptHandler, ast.match_case)
FORMAT = 1  # raise it when the documents made from the same files change


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """The documentation of the running Python: one document for each topic and each module.

    Which text it is depends on the version of Python.

    Attributes:
        part: the language reference's "topics" alone, the "modules" alone, or "all".
    """

    part: Literal["all", "topics", "modules"] = "all"

    def parts(self) -> list["EmbeddedPart"]:
        """The topics, and the modules in order of path, divided in runs of about equal size.

        Raises:
            UserError: this Python has no source files of its standard library.
        """
        root = Path(sysconfig.get_path("stdlib"))
        files = sorted(_sources(root))
        modules = [name for name in files if name != TOPICS]
        if not modules:
            raise UserError(
                f"the embedded corpus is the standard library's source, and {root} has none;"
                " name text files or a TFDS dataset as the source instead"
            )
        if self.part == "topics":
            modules = []
        groups: list[list[str]] = [[] for _ in range(PARTS - 1)]
        ends = list(accumulate((root / name).stat().st_size for name in modules))
        for name, end in zip(modules, ends, strict=True):
            groups[min(end * len(groups) // ends[-1], len(groups) - 1)].append(name)
        if TOPICS in files and self.part != "modules":
            groups.insert(0, [TOPICS])
        return [EmbeddedPart(str(root), tuple(group)) for group in groups if group]


@dataclass(frozen=True)
class EmbeddedPart:
    """Some of the standard library's source files, by path from its folder."""

    root: str
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        first, last = self.files[0], self.files[-1]
        return f"python:{first}" if first == last else f"python:{first}…{last}"

    def fingerprint(self) -> str:
        """Of the files' contents, so that equal installations agree."""
        sums = [hashlib.blake2b(Path(self.root, f).read_bytes()).hexdigest() for f in self.files]
        return digest("embedded", FORMAT, self.files, sums)

    def documents(self, skipped: Counter) -> Iterator[Document]:
        """Reads the files and counts those without a docstring as ``empty``."""
        for name in self.files:
            try:
                with warnings.catch_warnings():  # an old escape in a docstring is not our concern
                    warnings.simplefilter("ignore")
                    tree = ast.parse(Path(self.root, name).read_bytes())
            except (OSError, SyntaxError, ValueError, RecursionError):
                skipped["unreadable file"] += 1
                continue
            if name == TOPICS:
                yield from _topics(tree, skipped)
            elif text := _module_text(tree, _module_name(name)):
                yield Document(text.encode(), f"python:{name}")
            else:
                skipped["empty"] += 1


def _sources(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        for name in files:
            if name.endswith(".py"):
                yield Path(folder, name).relative_to(root).as_posix()


def _module_name(file: str) -> str:
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _topics(tree: ast.Module, skipped: Counter) -> Iterator[Document]:
    """The values of the dictionary in topics.py, but for topics that a longer one contains.

    Python's topics overlap (all of `for` is in `compound`, too). Were both kept, one could be held
    out while the other is trained on.
    """
    topics: dict[str, str] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            topics = ast.literal_eval(statement.value)
    known: set[str] = set()
    kept: dict[str, str] = {}
    for topic in sorted(topics, key=lambda t: (-len(topics[t]), t)):
        text = topics[topic].strip("\n")
        paragraphs = [" ".join(p.split()) for p in text.split("\n\n")]
        repeated = sum(len(p) for p in paragraphs if p in known)
        if not text.strip():
            skipped["empty"] += 1
        elif repeated > REPEATED_SHARE * sum(map(len, paragraphs)):
            skipped["part of another topic"] += 1
        else:
            kept[topic] = text + "\n"
        known.update(paragraphs)
    for topic in sorted(kept):
        yield Document(kept[topic].encode(), f"python:{TOPICS}:{topic}")


def _module_text(tree: ast.Module, module: str) -> str:
    """A module's docstrings in source order, each below its qualified name; empty for none."""
    sections = []
    pending: list[tuple[ast.AST, str]] = [(tree, module)]
    while pending:
        node, name = pending.pop()
        if isinstance(node, DEFINITIONS):
            name = f"{name}.{node.name}"
        if isinstance(node, (ast.Module, *DEFINITIONS)) and (docstring := _docstring(node)):
            sections.append(f"{name}\n\n{docstring}\n")
        inner = [n for n in ast.iter_child_nodes(node) if isinstance(n, BLOCKS)]
        pending.extend((child, name) for child in reversed(inner))
    return "\n".join(sections)


def _docstring(node: ast.AST) -> str:
    text = ast.get_docstring(node, clean=False) or ""
    text = inspect.cleandoc(text).strip()
    # A lone surrogate in a docstring ('\ud800') is a legal Python string and no legal text.
    return text.encode("utf-8", "replace").decode()
