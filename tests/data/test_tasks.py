"""Downstream tasks: rows from files and docstrings, against what was written or stands there."""

import ast
import contextlib
import gzip
import inspect
import json
import re
import sysconfig
from pathlib import Path

import pytest

from jaxpretrain.data.tasks import EmbeddedTask, FileTask, MinimalPairsTask, TaskSource
from jaxpretrain.data.tasks_rows import Answer, Item
from jaxpretrain.errors import UserError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
ROWS = [{"sentence": f"text {n} é", "label": n % 2} for n in range(6)]
ITEMS = [Item((row["sentence"],), row["label"]) for row in ROWS]


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return str(path)


def fails(task, *words):
    """Loading must raise a UserError of one line that has all the words."""
    with pytest.raises(UserError) as caught:
        task.load()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_each_split_is_read_from_its_file_plain_or_compressed(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "validation.jsonl.gz", ROWS[:3])
    write(tmp_path / "test.jsonl", ROWS[3:])
    assert FileTask(path=str(tmp_path)).load() == (ITEMS, ITEMS[:3], ITEMS[3:], ("0", "1"))
    write(tmp_path / "dev.jsonl", ROWS[:2])
    assert FileTask(path=str(tmp_path)).load().dev == ITEMS[:2]


def test_a_file_that_is_named_goes_before_that_of_the_folder(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "test.jsonl", ROWS[3:])
    other = write(tmp_path / "other.jsonl", ROWS[:2])
    found = FileTask(path=str(tmp_path), train="none", test=other).load()
    assert found == ([], [], ITEMS[:2], ("0", "1"))
    fails(FileTask(path=str(tmp_path), dev=f"{tmp_path}/x.jsonl"), "there is no file", "x.jsonl")


def test_tab_separated_files_are_read_without_quotes(tmp_path):
    text = 'sentence\tlabel\nsay "a\tno\n"b" é\tyes\nc\tno\n'
    (tmp_path / "test.tsv").write_text(text)
    (tmp_path / "train.tsv.gz").write_bytes(gzip.compress(text.encode()))
    found = FileTask(path=str(tmp_path)).load()
    assert found.test == [Item(('say "a',), 0), Item(('"b" é',), 1), Item(("c",), 0)]
    assert found.train == found.test and found.classes == ("no", "yes")
    for line in ("d\n", "d\tno\tmore\n"):
        (tmp_path / "test.tsv").write_text(text + "\n" + line)
        fails(FileTask(path=str(tmp_path)), "test.tsv:6 has not the 2 fields of the first line")


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        (("sentence1", "sentence2"), {}),
        (("premise", "hypothesis"), {}),
        (("question1", "question2"), {}),
        (("question", "sentence"), {}),
        (("question", "passage"), {}),
        (("sentence",), {}),
        (("text",), {}),
        (("body",), {"text": "body"}),
        (("tail", "head"), {"text": "tail", "second": "head"}),
    ],
    ids=str,
)
def test_the_texts_are_in_the_usual_fields_or_in_those_that_are_named(tmp_path, fields, settings):
    rows = [
        {"idx": n, **{name: f"{name} {n}" for name in reversed(fields)}, "label": n % 2}
        for n in range(4)
    ]
    write(tmp_path / "test.jsonl", rows)
    found = FileTask(path=str(tmp_path), **settings).load().test
    assert found == [Item(tuple(f"{name} {n}" for name in fields), n % 2) for n in range(4)]


def test_unknown_and_missing_fields_are_named_with_their_place(tmp_path):
    write(tmp_path / "test.jsonl", [{"body": "a", "label": 0}, {"body": "b", "label": 1}])
    fails(FileTask(path=str(tmp_path)), "which fields have the texts? There are body, label")
    fails(FileTask(path=str(tmp_path), text="bdy"), "test.jsonl:1 has no field 'bdy'", "'body'?")
    write(tmp_path / "test.jsonl", [*ROWS, {"sentence": "without"}])
    fails(FileTask(path=str(tmp_path)), "test.jsonl:7 has no field 'label'")
    fails(FileTask(path=str(tmp_path), label="lable"), "1 has no field 'lable'", "'label'?")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([10, 9, 2, 9, 10, 2], ("2", "9", "10")),
        (["b", "B", "a", "a", "B", "b"], ("B", "a", "b")),
        ([True, False, False, True], ("False", "True")),
    ],
    ids=str,
)
def test_classes_are_the_labels_in_their_order_and_items_have_their_numbers(
    tmp_path, labels, classes
):
    write(tmp_path / "train.jsonl", [{"text": str(n), "label": x} for n, x in enumerate(labels)])
    write(tmp_path / "test.jsonl", [{"text": "t", "label": labels[0]}])
    found = FileTask(path=str(tmp_path)).load()
    assert found.classes == classes
    assert [found.classes[item.label] for item in found.train] == list(map(str, labels))
    assert found.classes[found.test[0].label] == str(labels[0])


def test_a_label_that_the_training_rows_have_not_is_named_with_its_place(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "test.jsonl", [ROWS[0], {"sentence": "t", "label": -1}])
    fails(FileTask(path=str(tmp_path)), "test.jsonl:2 has label -1", "training rows have 0, 1")
    write(tmp_path / "train.jsonl", [*ROWS, {"sentence": "t", "label": [1]}])
    fails(FileTask(path=str(tmp_path)), "train.jsonl:7 has label [1]")


def test_a_column_of_numbers_is_taken_for_no_classes_but_for_regression(tmp_path):
    rows = [{"sentence": "t", "label": n / 7} for n in range(10)]
    write(tmp_path / "test.jsonl", rows)
    fails(FileTask(path=str(tmp_path)), "10 values in 10 rows", "is the kind 'regression'?")
    found = FileTask(path=str(tmp_path), kind="regression").load()
    assert found.classes == () and [item.label for item in found.test] == [n / 7 for n in range(10)]
    write(tmp_path / "test.jsonl", [{"sentence": "t", "label": 1}] * 5)
    fails(FileTask(path=str(tmp_path)), "field 'label' has 1 values in 5 rows")


def test_numbers_are_read_from_text_and_other_labels_of_a_regression_are_refused(tmp_path):
    (tmp_path / "test.tsv").write_text("text\tlabel\na\t2.5\nb\t-3\n")
    found = FileTask(path=str(tmp_path), kind="regression").load().test
    assert [item.label for item in found] == [2.5, -3.0]
    for wrong in ("good", "nan", [1]):
        write(tmp_path / "test.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": wrong}])
        task = FileTask(path=str(tmp_path), kind="regression")
        fails(task, f"test.jsonl:2 has label {wrong!r}, which is no finite number")
    write(tmp_path / "test.jsonl", [{"text": "a", "label": None}])
    fails(task, "test.jsonl:1: field 'label' is null")


def test_similarity_needs_two_texts(tmp_path):
    write(tmp_path / "test.jsonl", [{"text": "a", "other": "b", "label": 1.5}])
    task = FileTask(path=str(tmp_path), kind="similarity")
    fails(task, "similarity task compares two texts")
    task = FileTask(path=str(tmp_path), kind="similarity", text="text", second="other")
    assert task.load().test == [Item(("a", "b"), 1.5)]


def test_missing_empty_and_broken_files_are_named(tmp_path):
    fails(
        FileTask(path=str(tmp_path)),
        "there is no test.jsonl or test.tsv (or .gz) in",
        tmp_path.name,
    )
    write(tmp_path / "test.jsonl", [])
    fails(FileTask(path=str(tmp_path)), "the task has no test rows")
    write(tmp_path / "train.jsonl", ROWS)
    fails(FileTask(path=str(tmp_path)), "the task has no test rows")
    for line in ("{broken\n", "[1]\n", "\xff\n"):
        (tmp_path / "test.jsonl").write_text(json.dumps(ROWS[0]) + "\n\n" + line)
        fails(FileTask(path=str(tmp_path)), "test.jsonl:3 is no row of JSON")
    (tmp_path / "test.jsonl").write_text(json.dumps(ROWS[0]) + "\n\n")
    assert len(FileTask(path=str(tmp_path)).load().test) == 1
    (tmp_path / "test.jsonl").unlink()
    whole = gzip.compress((json.dumps(ROWS[0]) + "\n").encode() * 1000)
    (tmp_path / "test.jsonl.gz").write_bytes(whole[:-12])
    fails(FileTask(path=str(tmp_path)), "is no row of JSON", "test.jsonl.gz:")


CONTEXT = "Ünder the bridge: 漢字, 3 km. Under?"


def question(answers):
    return {"question": "Where?", "context": CONTEXT, "answers": answers, "is_impossible": False}


def test_questions_are_read_flat_and_as_tfds_has_them(tmp_path):
    spans = [("漢字", CONTEXT.index("漢")), ("Under", CONTEXT.index("Under"))]
    flat = [{"text": text, "answer_start": start} for text, start in spans]
    lists = {"text": [text for text, _ in spans], "answer_start": [start for _, start in spans]}
    rows = [
        question(flat),
        question(lists),
        question([]),
        question({"text": [], "answer_start": []}),
    ]
    write(tmp_path / "test.jsonl", rows)
    found = FileTask(path=str(tmp_path), kind="question_answering").load()
    expected = tuple(Answer(*span) for span in spans)
    assert [item.label for item in found.test] == [expected, expected, (), ()]
    assert {item.texts for item in found.test} == {("Where?", CONTEXT)} and found.classes == ()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([{"text": "bridge", "answer_start": 11}], "the context has no 'bridge' at character 11"),
        ([{"text": "bridge"}], "answers need text and answer_start"),
        ({"text": ["bridge"], "answer_start": []}, "answers need text and answer_start"),
        ([{"text": "bridge", "answer_start": "x"}], "answers need text and answer_start"),
        ("bridge", "answers need text and answer_start"),
        (None, "field 'answers' is null"),
        ([{"text": "", "answer_start": -1}], "the context has no '' at character -1"),
    ],
    ids=str,
)
def test_answers_that_are_not_in_the_context_are_refused_by_line(tmp_path, answers, message):
    write(tmp_path / "test.jsonl", [question([]), question(answers)])
    fails(FileTask(path=str(tmp_path), kind="question_answering"), "test.jsonl:2: ", message)


def pair(n, **more):
    return {"sentence_good": f"good {n}", "sentence_bad": f"bad {n}", **more}


def test_minimal_pairs_are_read_from_a_folder_with_their_phenomena(tmp_path):
    write(tmp_path / "b.jsonl", [pair(n, linguistics_term="binding", field="x") for n in range(3)])
    write(tmp_path / "a.jsonl.gz", [pair(n, field="syntax") for n in range(3)])
    write(tmp_path / "c.jsonl", [pair(7)])
    found = MinimalPairsTask(path=str(tmp_path), pairs=2).load()
    assert found.train == found.dev == []
    assert found.test == [
        *[Item((f"good {n}", f"bad {n}"), group="syntax") for n in range(2)],
        *[Item((f"good {n}", f"bad {n}"), group="binding") for n in range(2)],
        Item(("good 7", "bad 7"), group="c"),
    ]
    assert len(MinimalPairsTask(path=str(tmp_path)).load().test) == 7
    one = MinimalPairsTask(path=str(tmp_path / "b.jsonl"))
    assert len(one.load().test) == 3 and one.metrics == ("accuracy",)


def test_a_line_that_is_no_minimal_pair_is_named(tmp_path):
    write(tmp_path / "b.jsonl", [pair(0), {"sentence_good": "A."}])
    fails(MinimalPairsTask(path=str(tmp_path)), "b.jsonl:2 is no minimal pair: it needs")
    (tmp_path / "b.jsonl").write_text("no\n")
    fails(MinimalPairsTask(path=str(tmp_path)), "b.jsonl:1 is no row of JSON")
    fails(MinimalPairsTask(path=str(tmp_path / "x")), "there are no minimal pairs at", "/x'")


@pytest.fixture(scope="module")
def embedded():
    return EmbeddedTask().load()


def test_the_classes_of_the_embedded_task_are_packages_with_their_docstrings(embedded):
    """Every text, found again by walking the syntax trees of its package: as a docstring, or as
    what is left of one where a paragraph is nothing but a name that would give the package away."""
    library = Path(sysconfig.get_path("stdlib"))
    assert len(embedded.classes) == 8 and list(embedded.classes) == sorted(embedded.classes)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    items = [item for split in embedded[:3] for item in split]
    whole = 0
    for number, package in enumerate(embedded.classes):
        docstrings = set()
        for file in (library / package).rglob("*.py"):
            with contextlib.suppress(SyntaxError):  # some files of Python's tests are broken
                for node in ast.walk(ast.parse(file.read_bytes())):
                    if isinstance(node, kinds):
                        docstrings.add(" ".join((ast.get_docstring(node) or "").split()))
        own = [" ".join(item.texts[0].split()) for item in items if item.label == number]
        whole += sum(text in docstrings for text in own)
        together = "\n".join(docstrings)
        assert own and all(text in together for text in own), package
    assert whole > 0.95 * len(items)
    assert min(len(item.texts[0].split()) for item in items) >= 10


def test_no_text_of_the_embedded_task_is_in_two_splits_and_shares_are_as_said(embedded):
    texts = [[item.texts[0] for item in split] for split in embedded[:3]]
    every = [text for split in texts for text in split]
    assert len(set(every)) == len(every) > 1000
    # A hash is a fair draw: within five standard deviations of a binomial.
    for split, share in zip(texts, (0.65, 0.1, 0.25), strict=True):
        spread = (share * (1 - share) / len(every)) ** 0.5
        assert abs(len(split) / len(every) - share) < 5 * spread + 1 / 256


def test_fewer_packages_are_the_largest(embedded):
    three = EmbeddedTask(packages=3).load()
    sizes = [sum(item.label == n for item in embedded.train) for n in range(8)]
    whole = [sum(i.label == n for split in embedded[:3] for i in split) for n in range(8)]
    largest = sorted(range(8), key=lambda n: -whole[n])[:3]
    assert three.classes == tuple(sorted(embedded.classes[n] for n in largest))
    assert sorted(sum(item.label == n for item in three.train) for n in range(3)) == sorted(
        sizes[n] for n in largest
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "spearman"}, "metric is 'spearman', and classification has accuracy, f1"),
        ({"kind": "regression"}, "kind is 'regression': it can be classification here"),
        ({"train_rows": -1}, "train_rows is -1: it must be 0"),
        ({"test_rows": -2}, "test_rows is -2: it must be 0"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        EmbeddedTask(**settings)


def test_the_metric_of_the_task_is_the_first_of_its_kind_s():
    assert FileTask().metrics == ("accuracy", "f1", "matthews")
    assert FileTask(metric="matthews").metrics == ("matthews", "accuracy", "f1")
    assert FileTask(kind="question_answering", metric="exact_match").metrics == (
        "exact_match",
        "f1",
    )
    assert inspect.isabstract(TaskSource)


def readme():
    """Task, kind in words and rows by split, from the table of the README of the shared data."""
    text = (SHARED / "README.md").read_text() if (SHARED / "README.md").is_file() else ""
    for name, rows, kind in re.findall(
        r"^\| (\w+) \| ((?:\w+ \d+(?:, )?)+) \| (.*?) \|", text, re.M
    ):
        if (SHARED / "downstream" / name).is_dir():
            yield name, kind, {k: int(n) for k, n in re.findall(r"(\w+) (\d+)", rows)}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_every_real_task_loads_with_as_many_rows_as_its_readme_says():
    found = list(readme())
    assert len(found) >= 12
    for name, kind, counts in found:
        kinds = {"extractive": "question_answering", "regression": "regression"}
        kind = next((kinds[word] for word in kinds if word in kind), "classification")
        rows = FileTask(path=str(SHARED / "downstream" / name), kind=kind).load()
        sizes = {split: len(getattr(rows, split)) for split in ("train", "dev", "test")}
        assert sizes == {s: counts.get(s, 0) for s in ("train", "dev", "test")}, name
        assert len({len(item.texts) for item in rows.test}) == 1
    pairs = MinimalPairsTask(path=str(SHARED / "zero_shot" / "blimp")).load().test
    assert len(pairs) == 34000 and len({item.group for item in pairs}) > 5
