"""The model card that goes with an exported model: what the run recorded, and nothing else."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Facts(NamedTuple):
    """What a card says.

    Attributes:
        title: of the model.
        origin: what it was imported from, or "".
        loader: the class of `transformers` that reads it.
        task: its pipeline, or "".
        config: the run's, nested.
        step: of the checkpoint.
        summary: ``summary.json`` of the run, or None while it is being trained.
        tested: ``evaluation.json``, or None; not told where it is not of the run's own objective.
        vectors: whether sentence-transformers reads it, too.
        left_out: parts that were trained and have no name there.
    """

    title: str
    origin: str
    loader: str
    task: str
    config: Mapping[str, Any]
    step: int
    summary: Mapping[str, Any] | None
    tested: Mapping[str, Any] | None
    vectors: bool
    left_out: tuple[str, ...]


def card(facts: Facts) -> str:
    """``README.md`` of a model's folder."""
    library = "sentence-transformers" if facts.vectors else "transformers"
    pipeline = "feature-extraction" if facts.vectors else facts.task
    lines = ["---", f"library_name: {library}"]
    lines += [f"pipeline_tag: {pipeline}"] if pipeline else []
    objective, origin = facts.config["objective"]["name"], facts.origin
    title = f"{facts.title}, imported from {origin}" if origin else facts.title
    tags, training = ["jaxpretrain"], [f"None here: these are the weights of {origin}."]
    if facts.step or not origin:
        title += f", {'trained further' if origin else 'pretrained'} with {objective}"
        tags += [objective]
        training = [f"It began from the weights of {origin}.", ""] if origin else []
        training += _table(_training(facts))
    lines += ["tags:", *(f"- {tag}" for tag in tags), "---", ""]
    lines += [f"# {title}", "", *_use(facts), "", "## Training", "", *training]
    held = _held_out(facts)
    if held:
        lines += ["", "## On held-out documents", "", *_table(held)]
    if facts.left_out:
        names = ", ".join(facts.left_out)
        lines += ["", f"Trained besides, and not a part of this model: {names}."]
    return "\n".join(lines) + "\n"


def _use(facts: Facts) -> list[str]:
    if facts.vectors:
        code = [
            "from sentence_transformers import SentenceTransformer",
            "",
            "model = SentenceTransformer(FOLDER)",
            'vectors = model.encode(["one text", "another"])',
        ]
    else:
        code = [
            f"from transformers import AutoTokenizer, {facts.loader}",
            "",
            "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
            f"model = {facts.loader}.from_pretrained(FOLDER)",
        ]
    return ["```python", *code, "```"]


def _training(facts: Facts) -> list[tuple[str, str]]:
    """Names and values of what was trained, on what, and for how long."""
    config, summary = facts.config, facts.summary
    objective, data = config["objective"], config["data"]
    settings = {key: value for key, value in objective.items() if key != "name"}
    rows = [
        ("Objective", objective["name"]),
        *((f"`objective.{key}`", f"`{value}`") for key, value in settings.items()),
        ("Data", _source(config["source"])),
        ("Rows in a step, tokens in a row", f"{data['batch_size']:,}, {data['length']:,}"),
        ("Steps", f"{facts.step:,}"),
        ("Tokens", f"{facts.step * data['batch_size'] * data['length']:,}"),
    ]
    if summary and summary["steps"]:
        flops = summary["flops"] / summary["steps"] * facts.step
        rows += [
            ("Floating-point operations", f"{flops:.3g}"),
            ("Parameters in training", f"{summary['parameters']:,}"),
            ("Devices", summary["device"]),
            ("Software", f"jaxpretrain {summary['version']}"),
        ]
    return rows


def _source(source: Mapping[str, Any]) -> str:
    """Where the text is from: kinds of sources, with their paths or datasets and their weights."""
    if source["name"] == "mixture":
        parts = source["parts"].items()
        return ", ".join(f"{name}: {_source(part)} x {part['weight']:g}" for name, part in parts)
    what = source.get("path") or source.get("dataset")
    return f"{source['name']} `{what}`" if what else source["name"]


def _held_out(facts: Facts) -> list[tuple[str, str]]:
    """The numbers that were measured at the checkpoint's own step."""
    found = [facts.summary["eval"]] if facts.summary else []
    found += [facts.tested] if facts.tested and not facts.tested.get("changed") else []
    rows = []
    for numbers in found:
        if numbers["step"] != facts.step:
            continue
        for name in ("loss", "accuracy", "unigram_loss", "bits_per_byte", "bits_per_hidden_byte"):
            value = numbers.get(name)
            if value is not None:
                unit = " (nats)" if name.endswith("loss") else ""
                label = f"{name.replace('_', ' ')}{unit}, {numbers['split']}"
                rows.append((label, f"{value:.4f}"))
        for name, result in numbers.get("tasks", {}).items():
            interval = f"{result['low']:.3f} to {result['high']:.3f}"
            rows.append((f"{name}, {result['metric']}", f"{result['mean']:.3f} ({interval})"))
    return rows


def _table(rows: list[tuple[str, str]]) -> list[str]:
    return ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
