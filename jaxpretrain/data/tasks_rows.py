"""Rows of fields, from JSON lines, tab-separated files or TFDS, as the labelled rows of a task."""

import csv
import io
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxpretrain.data.sources_base import nearest
from jaxpretrain.data.sources_lines import open_bytes
from jaxpretrain.errors import UserError
from jaxpretrain.storage import access

Kind = Literal["classification", "regression", "similarity", "question_answering", "minimal_pairs"]
# What the fields with the texts are called in well-known datasets, by number of texts.
TEXTS = [
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("sentence",),
    ("text",),
]


class Item(NamedTuple):
    """One labelled row.

    Attributes:
        texts: one text or two; question and context; the good and the bad sentence.
        label: the number of a class, a number, or the `Answer`s to a question, which are none where
            it cannot be answered.
        group: the phenomenon of a minimal pair, else "".
    """

    texts: tuple[str, ...]
    label: Any = None
    group: str = ""


class Answer(NamedTuple):
    """A stretch of the context: its text, and the character at which it begins."""

    text: str
    start: int


class TaskRows(NamedTuple):
    """The rows of a task.

    Attributes:
        train: to learn from; empty where nothing is trained.
        dev: to choose by.
        test: to report.
        classes: names of the classes, in the order of their numbers.
    """

    train: list[Item]
    dev: list[Item]
    test: list[Item]
    classes: tuple[str, ...] = ()


def read_rows(file: Path) -> Iterator[tuple[str, dict]]:
    """The rows of a ``.jsonl`` or ``.tsv`` file (or ``.gz``), each with its place.

    Raises:
        UserError: a line that is no row, by file and line.
    """
    with access(f"read {file}"), open_bytes(str(file)) as raw:
        try:
            if file.name.removesuffix(".gz").endswith(".tsv"):
                text = io.TextIOWrapper(raw, encoding="utf-8", newline="")
                table = csv.DictReader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
                for row in table:
                    number = table.line_num  # it passes over empty lines
                    if None in row or None in row.values():
                        raise UserError(
                            f"{file}:{number} has not the {len(table.fieldnames)} fields of the "
                            "first line"
                        )
                    yield f"{file}:{number}", row
                return
            for number, line in enumerate(raw, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError
                yield f"{file}:{number}", row
        except (ValueError, EOFError, zlib.error, csv.Error) as error:
            place = f"{file}:{number}" if "number" in locals() else file
            what = "no row with tabs" if ".tsv" in file.name else "no row of JSON"
            raise UserError(f"{place} is {what} ({error or 'cut off'})") from None


def labelled(
    rows: dict[str, list[tuple[str, dict]]], *, kind: Kind, text: str, second: str, label: str
) -> TaskRows:
    """Rows of fields as items; the classes are the labels of the training (else the test) rows.

    Args:
        rows: by split, each with its place.
        kind: of the task.
        text: field with the text; "" finds the usual ones.
        second: field with the second text.
        label: field with the label.

    Raises:
        UserError: a missing field, or a label that does not fit the kind, by its place.
    """
    first = next((row for split in rows.values() for _, row in split), None)
    if first is None or not rows["test"]:
        raise UserError("the task has no test rows")
    if kind == "question_answering":
        made = {name: [_question(*row) for row in split] for name, split in rows.items()}
        return TaskRows(**made)
    fields = _text_fields(text, second, first)
    known = rows["train"] or rows["test"]
    classes: list[Any] = []
    if kind == "classification":
        found = set()
        for place, row in known:
            value = _field(row, label, place)
            if isinstance(value, list | Mapping):
                raise UserError(f"{place} has label {value!r}, which is no class")
            found.add(value)
        classes = sorted(found, key=lambda label: (str(type(label)), label))
        if not 2 <= len(classes) <= max(2, len(known) // 2):
            raise UserError(
                f"{known[0][0]}: field {label!r} has {len(classes)} values in {len(known)} "
                "rows: it is no class label; is the kind 'regression'?"
            )

    def item(place: str, row: dict) -> Item:
        texts = tuple(str(_field(row, name, place)) for name in fields)
        found = _field(row, label, place)
        if kind == "classification":
            if found not in classes:
                raise UserError(
                    f"{place} has label {found!r}, and the training rows have "
                    f"{', '.join(map(str, classes))}"
                )
            return Item(texts, classes.index(found))
        try:
            number = float(found)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{place} has label {found!r}, which is no finite number")
        return Item(texts, number)

    made = {name: [item(*row) for row in split] for name, split in rows.items()}
    if kind == "similarity" and len(fields) != 2:
        raise UserError("a similarity task compares two texts: set its text and its second")
    return TaskRows(**made, classes=tuple(map(str, classes)))


def _text_fields(text: str, second: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    if text:
        return (text, second) if second else (text,)
    for names in TEXTS:
        if all(name in row for name in names):
            return names
    raise UserError(
        f"which fields have the texts? There are {', '.join(row)}: set the task's text, and second "
        "for a pair"
    )


def _question(place: str, row: dict) -> Item:
    """SQuAD's fields (Rajpurkar et al. 2016), flat: a row for each question."""
    texts = tuple(str(_field(row, name, place)) for name in ("question", "context"))
    answers = _field(row, "answers", place)
    try:
        if isinstance(answers, Mapping):  # TFDS has a list for each field
            starts, found = answers["answer_start"], answers["text"]
            answers = [{"text": t, "answer_start": s} for t, s in zip(found, starts, strict=True)]
        made = tuple(Answer(str(a["text"]), int(a["answer_start"])) for a in answers)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{place}: answers need text and answer_start") from None
    for answer in made:
        if answer.start < 0 or not texts[1].startswith(answer.text or "\0", answer.start):
            raise UserError(
                f"{place}: the context has no {answer.text!r} at character {answer.start}"
            )
    return Item(texts, made)


def _field(row: Mapping[str, Any], name: str, place: str) -> Any:
    if name not in row:
        raise UserError(f"{place} has no field {name!r}{nearest(name, row)}")
    if row[name] is None:
        raise UserError(f"{place}: field {name!r} is null")
    return row[name]


def plain(value: Any) -> Any:
    """What TFDS gives as NumPy and bytes, as Python's own."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return [plain(item) for item in value] if isinstance(value, list) else value
