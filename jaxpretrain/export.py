"""The ``export`` command: a run's model as a folder that other libraries load."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxpretrain.data.tokenizer import Tokenizer
from jaxpretrain.errors import UserError
from jaxpretrain.evaluation.scoring import enclosing
from jaxpretrain.interop import sentence_transformers
from jaxpretrain.interop.card import Facts, card
from jaxpretrain.interop.families import FAMILIES
from jaxpretrain.interop.folder import write_model
from jaxpretrain.interop.huggingface import class_of, export_model
from jaxpretrain.interop.origin import Origin
from jaxpretrain.interop.tokenizer_json import tokenizer_files
from jaxpretrain.models.config import TransformerConfig
from jaxpretrain.objectives.base import Objective
from jaxpretrain.objectives.contrastive import Contrastive
from jaxpretrain.objectives.rtd import RTD, TIED
from jaxpretrain.reopen import Opened, opened
from jaxpretrain.storage import AnyPath, access, write
from jaxpretrain.workdir import read_json

PIPELINES = {"gaps": "fill-mask", "continuations": "text-generation"}


class Part(NamedTuple):
    """One model of a run.

    Attributes:
        config: its switches.
        params: its parameters.
        heads: names of what it has been trained with besides a body; "head" predicts tokens.
        samples: as an objective's.
    """

    config: TransformerConfig
    params: dict
    heads: frozenset[str]
    samples: str | None


def export(workdir: AnyPath, out: Path, *, which: str = "best") -> list[Path]:
    """Writes a run's model for Hugging Face `transformers`, and prints how to load it.

    A folder has ``config.json``, ``model.safetensors``, the tokenizer's files and a model card; of
    a contrastive run, what sentence-transformers reads besides. ELECTRA's generator goes into a
    folder in it.

    Args:
        workdir: folder of the run.
        out: a folder that does not exist yet, or is empty.
        which: the "best" checkpoint by validation loss, or the "latest".

    Returns:
        The folders.

    Raises:
        UserError: the folder holds no run, `out` holds something, or no family of models there is
            what the run trained, with the reason.
    """
    with access(f"write {out}"):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} holds something already: give another --out, or empty it")
    run, origin = opened(workdir, which), Origin.load(workdir)
    _, objectives = family_of(run)
    made = []
    for name, part in parts_of(objectives, run.params, untrained(run, origin)).items():
        try:
            made.append(made_of(workdir, out / name, run, origin, part))
        except UserError as error:
            raise UserError(f"of the {name}: {error}" if name else str(error)) from None
    for one in made:
        write_model(one.folder, one.config, one.tensors)
        for path, content in one.beside.items():
            with access(f"write {one.folder}"):
                (one.folder / path).parent.mkdir(parents=True, exist_ok=True)
                write(one.folder / path, content)
        print(one.said)
    return [one.folder for one in made]


class Made(NamedTuple):
    """A folder that is to be written.

    Attributes:
        folder: where.
        config: its ``config.json``.
        tensors: by name.
        beside: the other files by name.
        said: what to tell the user.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, np.ndarray]
    beside: dict[str, str]
    said: str


def made_of(workdir: AnyPath, where: Path, run: Opened, origin: Origin | None, part: Part) -> Made:
    """The folder of a part of a run; errors as for `export`."""
    family, objectives = family_of(run)
    loader, kept = class_of(family, part.heads)
    left_out = tuple(sorted(part.heads - set(kept)))
    params = {group: tree for group, tree in part.params.items() if group not in left_out}
    config, tensors = export_model(family, part.config, params)
    said = f"{where}: {loader}, {sum(t.size for t in tensors.values()):,} parameters"
    if left_out:
        said += f"\n  without {', '.join(left_out)}: no {family} of transformers has such a part"
    config |= {"architectures": [loader]} | ids(run, origin)
    files = beside(workdir, run, origin, objectives, part, loader, left_out)
    return Made(where, config, tensors, files, said)


def untrained(run: Opened, origin: Origin | None) -> frozenset[str]:
    """Groups of parameters that are still as they were drawn: an imported model had them not."""
    return frozenset(origin.untrained) if origin and run.step == 0 else frozenset()


def family_of(run: Opened) -> tuple[str, list[Objective]]:
    """The family of Hugging Face models that a run's model is one of, and those objectives of the
    run under which positions saw each other as they do in it.

    Raises:
        UserError: none is.
    """
    preset, objective = run.config.model.preset, run.objective
    if preset not in FAMILIES:
        raise UserError(
            f"model.preset is {preset!r}, and no Hugging Face model is built so: train with one of "
            f"{', '.join(FAMILIES)}"
        )
    needed = FAMILIES[preset].sees
    alike = [part for part in objective.parts() if part.visibility == needed]
    if not alike:
        sees = {part.visibility for part in objective.parts()}
        raise UserError(
            f"{objective.name} trained a model in which attention is {' and '.join(sorted(sees))}, "
            f"and a Hugging Face {preset} has it {needed}: it would not compute the same"
        )
    return preset, alike


def parts_of(
    objectives: list[Objective], params: dict, untrained: Collection[str] = ()
) -> dict[str, Part]:
    """The models that objectives have trained, by the folder that they go to.

    Args:
        objectives: of the run.
        params: of its checkpoint.
        untrained: groups of them that are still as they were drawn.
    """
    backbone = objectives[0].backbone
    samples = next((one.samples for one in objectives if one.samples), None)
    heads = params.keys() - backbone.axes().keys() - {"generator"}
    if any(one.token_term and not isinstance(one, RTD) for one in objectives):
        heads |= {"head"}  # which has no parameters of its own where all it does is tied
    heads -= set(untrained)
    body = backbone.axes().keys() - {"head"} | heads
    main = {group: tree for group, tree in params.items() if group in body}
    found = {"": Part(backbone.config, main, frozenset(heads), samples)}
    has_generator = "generator" not in untrained
    for rtd in (one for one in objectives if isinstance(one, RTD) and has_generator):
        own = params["generator"] | {group: params[group] for group in TIED if group in params}
        found["generator"] = Part(rtd.generator.config, own, frozenset({"head"}), "gaps")
    return found


def ids(run: Opened, origin: Origin | None) -> dict[str, Any]:
    """The special pieces that a ``config.json`` knows; what it said of them before counts.

    One that only stands in for padding is not named: `transformers` would not train it.
    """
    vocab, theirs = run.tokenizer.vocab, not isinstance(run.tokenizer, Tokenizer)
    names = ["pad", "bos", "eos"]
    if FAMILIES[run.config.model.preset].sees == "full":
        names = ["pad", "cls", "sep"] if theirs else [*names, "cls", "sep"]
    elif theirs and run.objective.backbone.config.decoder_layers:
        names = ["pad", "eos"]
    found = {f"{name}_token_id": getattr(vocab, name) for name in names}
    if run.objective.backbone.config.decoder_layers:
        found["decoder_start_token_id"] = vocab.pad
    elif vocab.pad in (vocab.bos, vocab.eos, vocab.cls, vocab.sep):
        found["pad_token_id"] = None
    return found | (origin.ids if origin else {})


def beside(
    workdir: AnyPath,
    run: Opened,
    origin: Origin | None,
    objectives: list[Objective],
    part: Part,
    loader: str,
    left_out: tuple[str, ...],
) -> dict[str, str]:
    """What lies beside the model: the tokenizer's files, the card, and what vectors need."""
    config, first = run.config, objectives[0]
    longest = first.longest_input(config.data.length, config.data.batch_size)
    vectors = next((one for one in objectives if isinstance(one, Contrastive)), None)
    task = PIPELINES.get(part.samples, "")
    # A generator that the folder had not began at random, but for embeddings.
    is_generator = part.config != run.objective.backbone.config
    anew = origin is not None and is_generator and "generator" in origin.untrained
    facts = Facts(
        title=f"{workdir.name}: {config.model.preset}",
        origin=origin.folder if origin and not anew else "",
        loader=loader,
        task=task if "head" in part.heads and not part.config.decoder_layers else "",
        config=config.to_dict(),
        step=run.step,
        summary=recorded(workdir / "summary.json"),
        tested=recorded(workdir / "evaluation.json"),
        vectors=vectors is not None,
        left_out=left_out,
    )
    found = {"README.md": card(facts)} | (origin.files() if origin else {})
    found |= tokenizer_files(
        run.tokenizer,
        enclosing=enclosed(first),
        exactly=vectors is not None,
        has_types=part.config.token_types > 1,
        # An imported model may have seen longer texts than it was trained with here.
        model_max_length=None if origin else longest,
        said=origin.tokenizer if origin else {},
    )
    if vectors is not None:
        found |= sentence_transformers.files(
            width=part.config.width, pooling=vectors.pooling, longest=longest
        )
    return found


def enclosed(objective: Objective) -> tuple[str | None, str | None]:
    """Names of the special pieces before and after a text as the objective reads it.

    A causal model is to go on after a text, so nothing is after it.
    """
    if objective.backbone.config.decoder_layers:
        return None, "eos"
    first, last = enclosing(objective)
    return first, None if objective.samples == "continuations" else last


def recorded(path: AnyPath) -> dict | None:
    """What a run has written down, if it has."""
    with access(f"read {path}"):
        there = path.exists()
    return read_json(path) if there else None
