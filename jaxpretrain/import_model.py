"""The ``import`` command: a Hugging Face model as a run of ours, to train on and to measure."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpretrain.assemble import Pieces, build
from jaxpretrain.checkpoint import Checkpoints
from jaxpretrain.config import complete, override, read_file
from jaxpretrain.data.store import TOKENIZER
from jaxpretrain.data.tokenizer_hf import FastTokenizer
from jaxpretrain.errors import UserError
from jaxpretrain.interop.folder import read_config
from jaxpretrain.interop.huggingface import (
    HOW,
    family_of,
    import_params,
    not_used,
    read_model,
    settings,
    switches,
)
from jaxpretrain.interop.origin import Origin
from jaxpretrain.objectives.rtd import RTD, TIED
from jaxpretrain.settings import DataSettings
from jaxpretrain.state import TrainState, init_state
from jaxpretrain.storage import AnyPath, access
from jaxpretrain.workdir import OPEN, claim_workdir, sole_use

# What a config may say of an imported model: how it is computed, and what is dropped in training.
FREE = (*HOW, "dropout", "attention_dropout")
# The objective that a class of `transformers` was trained with, where a config names none.
OBJECTIVES = {
    "BertForPreTraining": "bert",
    "BertForNextSentencePrediction": "nsp",
    "ElectraForPreTraining": "rtd",
}
OTHERWISE = {"full": "mlm", "causal": "clm"}
# Where an export has ELECTRA's generator, in the folder of its discriminator.
BESIDE = "generator"
ENCLOSING = 3  # tokens that an objective adds to a row, at most


def import_model(
    folder: Path,
    workdir: AnyPath,
    *,
    file: str | None = None,
    overrides: Mapping[str, str] | None = None,
    generator: Path | None = None,
) -> None:
    """Makes a workdir whose first checkpoint, at step 0, is the model.

    The model section of its config is the model's own; all else is the config file's. What an
    objective trains and the model has not (a head) starts anew.

    Args:
        folder: Hugging Face's, with ``config.json``, safetensors and the tokenizer's files.
        workdir: of the new run; must hold none.
        file: config file; None takes the defaults, and the objective that fits the model.
        overrides: dotted keys and text on top of it.
        generator: folder of ELECTRA's generator; None takes ``generator`` in the model's folder,
            where an export has it, if it is there. For `rtd` only.

    Raises:
        UserError: a folder is no such model, or has what our backbone does not compute; the config
            does not fit it; the generator and the model are not of one ELECTRA; the workdir holds a
            run already.
    """
    theirs, tensors = read_model(folder)
    ours = switches(theirs)
    with access(f"read the workdir {workdir}"):
        if (workdir / "run.json").exists():
            raise UserError(f"{workdir} holds a run already: give another --workdir")
    tokenizer = FastTokenizer.from_folder(folder, size=ours.vocab_size)
    start, pad = theirs.get("decoder_start_token_id"), tokenizer.vocab.pad
    if start not in (None, pad):
        raise UserError(
            f"decoder_start_token_id is {start} in the model's config.json, and a decoder begins "
            f"with the piece for padding here, which is {pad}: it cannot be imported"
        )
    if generator is None and (folder / BESIDE).is_dir():
        beside: Path | None = folder / BESIDE
    else:
        beside = generator
    small = None if beside is None else read_config(beside)
    config = complete(sections(theirs, workdir, file, overrides or {}, small))
    pieces = build(config, tokenizer.vocab)
    found = import_params(theirs, tensors, pieces.abstract.params)
    if beside is not None and isinstance(pieces.objective, RTD):
        found |= {"generator": generator_params(beside, pieces, found)}
    elif generator is not None:
        raise UserError(
            f"a generator is a part of rtd, and the objective is {pieces.objective.name}: leave "
            "--generator out, or set --config.objective.name=rtd"
        )
    anew = set(pieces.abstract.params.keys() - found.keys())
    if not any(part.token_term and not isinstance(part, RTD) for part in pieces.objective.parts()):
        anew -= {"head"}  # which is there, and nothing trains it
    origin = Origin.of(folder, theirs, sorted(pieces.abstract.params.keys() - found.keys()))
    with sole_use(workdir):
        identity = {"tokenizer": tokenizer.sha256, "token store": OPEN}
        claim_workdir(workdir, config.to_dict(), tokenizer, identity)
        origin.save(workdir)
        checkpoints = Checkpoints(workdir / "checkpoints", pieces.placement)
        checkpoints.save(first_state(pieces, found))
        checkpoints.close()
    count = sum(leaf.size for leaf in jax.tree.leaves(found))
    print(
        f"{workdir}: {theirs['model_type']} with {count:,} parameters, to train with "
        f"{pieces.objective.name}"
    )
    sees = family_of(theirs).sees
    if sees not in {part.visibility for part in pieces.objective.parts()}:
        print(
            f"  warning: in a {theirs['model_type']} attention is {sees}, and under "
            f"{pieces.objective.name} it is {pieces.objective.visibility}: its weights are used to "
            "the other"
        )
    if anew:
        print(f"  not in the model, and so untrained: {', '.join(sorted(anew))}")
    if left := not_used(theirs, tensors, found):
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        print(f"  in the model, and not used here: {', '.join(left[:5])}{more}")
    print(f"  prepare and train with --config={workdir}/config.json")


def generator_params(folder: Path, pieces: Pieces, found: Mapping[str, Any]) -> dict[str, Any]:
    """The generator's own parameters.

    Args:
        folder: of the generator.
        pieces: of the run, whose objective is `RTD`.
        found: the discriminator's parameters, with which the generator shares its embeddings.

    Raises:
        UserError: it is not this discriminator's generator, or not a whole one.
    """
    theirs, tensors = read_model(folder)
    needed = settings("electra", pieces.objective.generator.config)
    given = settings("electra", switches(theirs))
    differs = [
        f"{key} {given[key]} (not {need})"
        for key, need in needed.items()
        if given[key] != need and not key.endswith(("_prob", "_range"))
    ]
    if differs:
        raise UserError(
            f"the generator in {folder} is not the model's with objective.generator_size="
            f"{pieces.objective.generator_size}: it has {', '.join(differs)}"
        )
    shapes = pieces.abstract.params["generator"]
    shared = {name: pieces.abstract.params[name] for name in TIED if name in found}
    read = import_params(theirs, tensors, shapes | shared)
    missing = sorted(shapes.keys() - read.keys())
    if missing:
        raise UserError(
            f"the generator in {folder} has no {', '.join(missing)}: it must be an "
            "ElectraForMaskedLM"
        )
    for name in shared:
        if not np.allclose(read[name]["embedding"], found[name]["embedding"], rtol=0, atol=1e-6):
            raise UserError(
                f"the generator in {folder} has other embeddings of {name} than the model, and "
                "ELECTRA's share them: give the generator that it was trained with"
            )
    return {name: read[name] for name in shapes}


def sections(
    theirs: Mapping[str, Any],
    workdir: AnyPath,
    file: str | None,
    overrides: Mapping[str, str],
    generator: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The raw config of the run.

    Args:
        theirs: the model's ``config.json``.
        workdir: of the run, which is to have the tokenizer.
        file: config file or None.
        overrides: dotted keys and text.
        generator: the ``config.json`` of ELECTRA's generator, if there is one.
    """
    raw = read_file(file) if file else {}
    family, model = family_of(theirs), asdict(switches(theirs))
    given = raw.get("model", {})
    del model["vocab_size"]
    raw["model"] = {"preset": family.preset} | model
    raw["model"] |= {key: given[key] for key in FREE if key in given}
    raw["tokenizer"] = {"file": str(workdir / TOKENIZER)}
    if model["positions"] == "learned" and "length" not in raw.get("data", {}):
        usual = min(DataSettings.length, model["max_length"] - ENCLOSING)
        raw["data"] = {**raw.get("data", {}), "length": usual}
    if "objective" not in raw:
        classes = theirs.get("architectures") or [""]
        fitting = "span_corruption" if model["decoder_layers"] else OTHERWISE[family.sees]
        raw["objective"] = {"name": OBJECTIVES.get(classes[0], fitting)}
    if generator and raw["objective"].get("name") == "rtd":
        size = switches(generator).width / model["width"]
        raw["objective"] = {"generator_size": size} | raw["objective"]
    for key, text in overrides.items():
        section, _, name = key.partition(".")
        if section == "tokenizer" or (section == "model" and name not in FREE):
            raise UserError(
                f"config.{key} is the imported model's own: of its model section only "
                f"{', '.join(FREE)} can be set"
            )
        override(raw, key, text)
    return raw


def first_state(pieces: Pieces, found: Mapping[str, Any]) -> TrainState:
    """The state before the first step, with the parameters that were found."""
    state = init_state(pieces.objective, pieces.optimizer, pieces.config.seed, pieces.abstract)
    placed = {
        group: jax.tree.map(
            lambda value, like: jax.device_put(np.asarray(value), like.sharding),
            tree,
            pieces.abstract.params[group],
        )
        for group, tree in found.items()
    }
    return state._replace(params=state.params | placed)
