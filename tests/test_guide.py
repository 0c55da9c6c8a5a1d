"""The guide: its commands run, its two languages say the same, and what it points at exists.

The commands are read from the fenced ``console`` blocks of the English pages and run in order, in
one folder, as a reader would run them; only sizes are made small and the text is a tiny one.
"""

import json
import os
import pydoc_data.topics
import re
import runpy
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from ml_collections import ConfigDict

from jaxpretrain.config import complete, read_file
from jaxpretrain.main import main

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs/guide"
PAGES = sorted(file.name for file in (GUIDE / "en").glob("*.md"))
STEPS = [name for name in PAGES if name[0].isdigit()]
BOTH = [f"{language}/{name}" for language in ("en", "bg") for name in PAGES]
PARTS = {
    "en": [
        "The question",
        "The command",
        "What to look at",
        "What we measured",
        "The common mistake",
        "Check yourself",
    ],
    "bg": [
        "Въпросът",
        "Командата",
        "Какво да погледнете",
        "Какво измерихме",
        "Честата грешка",
        "Проверете се",
    ],
}
# What makes a run short. The text is the same in all, so they share one token store.
SHORT = {
    "source.name": "text",
    "source.path": "texts/*.txt",
    "store.validation_fraction": "0.1",
    "store.test_fraction": "0.1",
    "store.workers": "1",
    "tokenizer.vocab_size": "700",
    "data.length": "32",
    "data.batch_size": "8",
    "data.loader": "threads",
    "model.width": "16",
    "model.layers": "1",
    "model.dropout": "0",
    "optimizer.learning_rate": "0.001",  # all the same, so that they share compiled programs
    "optimizer.warmup_steps": "2",
    "train.steps": "4",
    "evaluate.every": "4",
    "evaluate.batches": "2",
    "checkpoint.every": "4",
    "tasks.packages.name": "files",
    "tasks.packages.path": "cats",
    "tasks.packages.method": "probe",
    "downstream.seeds": "1",
    "downstream.epochs": "1",
    "downstream.learning_rates": "0.001",
}
BUDGET = {"tokens": 4 * 8 * 32}


def page(name: str) -> str:
    """The text of a page such as ``en/README.md``."""
    return (GUIDE / name).read_text(encoding="utf-8")


def commands(name: str) -> list[str]:
    """What a page tells the reader to type, in order."""
    blocks = re.findall(r"^```console\n(.*?)^```", page(name), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines), lines
    return [line.removeprefix("$ ") for line in lines]


def unfenced(name: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page(name), flags=re.M | re.S)


def programs(command: str) -> list[list[str]]:
    """The programs that a line of a page starts, with their arguments."""
    words = shlex.split(command)
    if words[0] == "launch/local.sh":
        shown = subprocess.run(
            [words[0], "--dry-run", *words[1:]],
            cwd=ROOT,
            env=os.environ | {"JAXPRETRAIN_DEVICE": "cpu"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        found = [shlex.split(line) for line in shown.splitlines()]
        run = [["jaxpretrain", *more] for first, *more in found if first.endswith("/jaxpretrain")]
        assert [arguments[1] for arguments in run] == ["prepare", "train", "evaluate"]
        return run
    if words[0] == ".":
        assert words == [".", ".venv/bin/activate"]
        return []
    assert words[0] in ("jaxpretrain", "python"), f"the test cannot run {command!r}"
    return [words]


def shortened(arguments: list[str], folder: Path) -> list[str]:
    """The arguments of jaxpretrain for a short run, its config file found or written."""
    name = arguments[0]
    made = []
    for word in arguments:
        key, _, path = word.partition("=")
        if key == "--config":
            word = f"{key}={short_ablation(path, folder) if name == 'ablate' else ROOT / path}"
        made.append(word)
    if name in ("prepare", "train", "ablate"):
        made += [f"--config.{key}={value}" for key, value in SHORT.items()]
    return made


def short_ablation(path: str, folder: Path) -> Path:
    """An ablation's file with few cells and a small budget."""
    raw = read_file(str(ROOT / path), "get_ablation")
    raw["base"] = str((ROOT / path).parent / raw["base"])
    raw["budget"] = BUDGET
    raw["grid"] = {key: [values[0], values[-1]] for key, values in raw.get("grid", {}).items()}
    if "seeds" in raw:  # one of them, which a cell's name says only where it is of the grid
        raw["grid"]["seed"] = raw.pop("seeds")[:1]
    if "cells" in raw:
        few = ("mlm", "clm") if len(raw["cells"]) < 5 else ("clm",)
        raw["cells"] = {name: raw["cells"][name] for name in few}
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'"""Short."""\n\n\ndef get_ablation():\n    return {raw!r}\n')
    return file


class Ran(NamedTuple):
    """A program that was run: the line of the page, its status and what it printed."""

    line: str
    status: object
    out: str


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """The folder of a reader who has typed all of the guide, and all that was run there."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "texts").mkdir()
    for name, text in sorted(pydoc_data.topics.topics.items())[:40]:
        (folder / "texts" / f"{name}.txt").write_text(text)
    (folder / "cats").mkdir()
    for split in ("train", "dev", "test"):
        rows = [
            {"text": f"number {i} is a {('dog', 'cat')[i % 2]}", "label": i % 2} for i in range(24)
        ]
        (folder / f"cats/{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ran = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONHASHSEED", "0")
        for line in [line for name in PAGES for line in commands(f"en/{name}")]:
            for program, *arguments in programs(line):
                ran.append(Ran(line, *run(program, arguments, folder)))
    return folder, ran


def run(program: str, arguments: list[str], folder: Path) -> tuple[object, str]:
    """Status and output of a program, run in this process."""
    import contextlib
    import io

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            if program == "python":
                runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
                status = 0
            else:
                status = main(shortened(arguments, folder))
        except SystemExit as error:
            status = error.code
    return status, said.getvalue()


def test_every_command_of_the_guide_succeeds(walk):
    _, ran = walk
    failed = [f"{one.line}\n  {one.status}: {one.out[-500:]}" for one in ran if one.status != 0]
    assert not failed, "\n".join(failed)
    assert len(ran) >= 20


def test_what_the_guide_tells_the_reader_to_look_at_is_there(walk):
    folder, _ = walk
    named = {path for name in BOTH for path in re.findall(r"`(runs/[^`\s]+)`", page(name))}
    assert len(named) >= 5
    missing = sorted(path for path in named if not (folder / path).exists())
    assert not missing, missing


def test_commands_print_what_the_pages_say_that_they_print(walk):
    _, ran = walk

    def printed(*words: str) -> str:
        return "\n".join(one.out for one in ran if all(word in one.line for word in words))

    assert re.search(r"^  inputs .*\[MASK\]", printed("replay", "runs/quickstart "), re.M)
    assert "[MASK]" not in printed("replay", "runs/quickstart-clm")
    assert re.search(r"^gap$", printed("score", "[MASK]"), re.M)
    assert "given all others" in printed("score", "runs/quickstart ")
    assert "given those before it" in printed("score", "runs/quickstart-clm")
    assert "the second follows the first" in printed("score", "runs/nsp")
    assert re.search("under clm +[0-9.]+ nats", printed("--under", "runs/quickstart "))
    assert re.search("under mlm +[0-9.]+ nats", printed("--under", "runs/quickstart-clm"))
    assert "order/probe" in printed("--tasks=order") and "chance 0.500" in printed("--tasks=order")
    assert "order/finetune" in printed("method=both")


@pytest.mark.parametrize("name", PAGES)
def test_both_languages_have_the_same_commands_and_snippets(name):
    assert (GUIDE / "bg" / name).is_file()
    assert commands(f"en/{name}") == commands(f"bg/{name}")
    same = re.compile(r"^```(?:python|json)\n.*?^```", re.M | re.S)
    assert same.findall(page(f"en/{name}")) == same.findall(page(f"bg/{name}"))
    assert sorted(file.name for file in (GUIDE / "bg").glob("*.md")) == PAGES


@pytest.mark.parametrize("name", PAGES)
def test_both_languages_have_the_same_numbers(name):
    """Those with a decimal fraction, which Bulgarian writes with a comma."""
    english = re.findall(r"\d+\.\d+", unfenced(f"en/{name}"))
    bulgarian = re.findall(r"\d+[.,]\d+", unfenced(f"bg/{name}"))
    assert sorted(english) == sorted(number.replace(",", ".") for number in bulgarian)


@pytest.mark.parametrize("name", BOTH)
def test_files_and_links_of_a_page_exist(name):
    text = page(name)
    for path in re.findall(r"\b(?:configs|docs|launch|jaxpretrain)/[\w/.]+\.(?:py|sh|md)\b", text):
        assert (ROOT / path).is_file(), path
    links = re.findall(r"\]\(([^)\s]+)\)", unfenced(name))
    assert links
    for link in links:
        if not re.match(r"[a-z]+:", link):
            assert ((GUIDE / name).parent / link.partition("#")[0]).is_file(), link


@pytest.mark.parametrize("name", [name for name in BOTH if name.rpartition("/")[2] in STEPS])
def test_a_step_has_all_its_parts(name):
    text = page(name)
    assert re.findall(r"^## (.*)$", text, re.M) == PARTS[name.partition("/")[0]]
    last = text.rpartition("\n## ")[2]
    asked, answered = last.split("<details>")
    answered, _ = answered.split("</details>")
    numbers = re.findall(r"^(\d)\. ", asked, re.M)
    assert 3 <= len(numbers) <= 4
    assert re.findall(r"^(\d)\. ", answered, re.M) == numbers
    assert "<summary>" in answered


def test_the_index_leads_to_every_step():
    for language in PARTS:
        text = page(f"{language}/README.md")
        assert [name for name in re.findall(r"\]\((\d[^)]*)\)", text)] == STEPS


@pytest.mark.parametrize("name", STEPS)
def test_snippets_of_configs_are_valid(name):
    for snippet in re.findall(r"^```python\n(.*?)^```", page(f"en/{name}"), re.M | re.S):
        config = ConfigDict(read_file(str(ROOT / "configs/quickstart.py")))
        exec(snippet, {"config": config})
        assert complete(config.to_dict()).tasks.keys()


def test_nothing_is_left_to_measure():
    left = [
        f"{name}: {line}" for name in BOTH for line in page(name).splitlines() if "MEASURE:" in line
    ]
    assert not left, "\n".join(left)
