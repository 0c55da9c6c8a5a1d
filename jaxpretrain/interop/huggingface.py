"""Hugging Face models as configs and parameters of our backbone, and back.

What a family is, is said in `families.py`; here is what is done with it.
"""

import re
from collections import ChainMap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpretrain.errors import UserError
from jaxpretrain.interop.families import FAMILIES, Family
from jaxpretrain.interop.folder import NEW_NAMES, Tensors, read_config
from jaxpretrain.interop.tensors import flat, to_ours, to_theirs
from jaxpretrain.models.config import TransformerConfig
from jaxpretrain.models.presets import PRESETS
from jaxpretrain.models.transformer import Backbone

# How it is computed, which is not a part of what it is.
HOW = ("dtype", "attention", "scan_layers", "remat", "loss_block")
# What is dropped in training is no part of it either: a family may have fewer rates for it.
DROPPED = ("dropout", "attention_dropout")
# What files have beside parameters.
BUFFERS = ("position_ids", "inv_freq", "attn.bias", "attn.masked_bias", "token_type_ids")


def read_model(folder: Path) -> tuple[Mapping[str, Any], Tensors]:
    """The ``config.json`` of a folder, with what it leaves open settled by the tensors, and those.

    Raises:
        UserError: the folder has none of a family that is known, or is incomplete.
    """
    config = read_config(folder)
    family = family_of(config)
    tensors = Tensors(folder, family.base)
    return family.settled(config, tensors), tensors


def import_model(
    config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> tuple[TransformerConfig, dict]:
    """A Hugging Face model as a config and parameters of `Backbone`.

    Args:
        config: its ``config.json``.
        tensors: its state dict, name to array.

    Returns:
        The switches and the nested dict of float32 arrays.

    Raises:
        UserError: a family that is not known, an option that the backbone does not have, or
            tensors that are missing or of another shape than the config says.
    """
    family = family_of(config)
    ours = switches(family.settled(config, tensors))
    shapes = jax.eval_shape(Backbone(ours).init, jax.random.key(0))
    head = [line for line in family.table if line.ours[0].startswith("head/")]
    head = [line.theirs for line in head if line.holds(dict(flat(shapes)).keys())]
    if head and not any(name in tensors for name in head):
        raise UserError(
            f"the model has no part that predicts tokens, such as {head[0]}: it is no "
            f"{family.classes['head',]}"
        )
    return ours, to_ours(family.table, by_one_name(family, tensors, shapes), shapes)


def import_params(
    config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Any]
) -> dict:
    """The parameters of an objective, as far as a Hugging Face model has them.

    Args:
        config: its ``config.json``.
        tensors: its state dict.
        shapes: of the parameters that the objective trains, as nested dict.

    Returns:
        Those of the body, and of each head that is whole among the tensors; float32.

    Raises:
        UserError: as for `import_model`.
    """
    family = family_of(config)
    table = family.table
    ours = switches(family.settled(config, tensors))
    backbone = jax.eval_shape(Backbone(ours).init, jax.random.key(0))
    tensors = by_one_name(family, tensors, backbone)

    def is_there(name: str) -> bool:
        lines = [line for line in table if line.ours[0].startswith(f"{name}/")]
        known = {path for line in lines if line.theirs in tensors for path in line.ours}
        return {f"{name}/{path}" for path, _ in flat(shapes[name])} <= known

    body = backbone.keys() - {"head"}
    kept = {name: part for name, part in shapes.items() if name in body or is_there(name)}
    return to_ours(table, tensors, kept)


def by_one_name(
    family: Family, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, Any]
) -> Mapping[str, np.ndarray]:
    """The tensors by the names of the family's table, where a file has only a tied one's other.

    Args:
        family: of the model.
        tensors: its state dict.
        shapes: of our backbone's parameters, as nested dict.

    Raises:
        UserError: a tensor that the config ties to another is there beside it, and differs.
    """
    paths = dict(flat(shapes)).keys()
    of_its_own = {line.theirs for line in family.table if line.holds(paths)}
    found = {}
    for name, other in family.twins:
        if other in of_its_own or other not in tensors:
            continue
        if name not in tensors:
            found[name] = tensors[other]
        elif not np.array_equal(tensors[name], tensors[other]):
            raise UserError(
                f"the tensors {name} and {other} are one by the model's config.json, and two in "
                "its files: it is not clear which it computes with; save it with one of them"
            )
    return ChainMap(found, tensors)


def not_used(
    config: Mapping[str, Any], tensors: Iterable[str], found: Mapping[str, Any]
) -> list[str]:
    """The parts of a Hugging Face model that are no parameter of what was made of it, sorted.

    Args:
        config: its ``config.json``.
        tensors: their names.
        found: our parameters, nested.
    """
    family, paths = family_of(config), dict(flat(found)).keys()
    used = {line.theirs for line in family.table if line.holds(paths)}
    used |= {other for _, other in family.twins}
    left = set()
    for stored in tensors:
        front, _, last = stored.rpartition(".")
        renamed = f"{front}.{NEW_NAMES.get(last, last)}"
        # A model without a head lacks what the names of others begin with.
        names = {renamed, family.base + renamed}
        names |= {re.sub(r"\.\d+\.", ".{}.", name, count=1) for name in names}
        if not stored.endswith(BUFFERS) and not names & used:
            left.add(front)
    return sorted(left)


def export_model(
    name: str, config: TransformerConfig, params: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The inverse of `import_model`.

    Args:
        name: of the family: one of `FAMILIES`.
        config: the backbone's.
        params: its parameters and any heads that the family has a name for; others are left out.

    Returns:
        ``config.json`` and the tensors by name. Tied tensors are there once, if they are so there.

    Raises:
        UserError: the family cannot be what the config says.
    """
    family, written = _family(name), settings(name, config)
    tensors = to_theirs(family.table, params)
    if config.tied_embeddings and not written.get("tie_word_embeddings", True):
        shared, head = family.twins[-1]
        tensors[head] = tensors[shared]
    if not config.tied_embeddings:  # then transformers 5 ties no bias either
        pairs = [pair for pair in family.twins if pair[1].endswith("bias")]
        tensors |= {other: tensors[name] for name, other in pairs if name in tensors}
    return written, tensors


def class_of(name: str, heads: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """The class of `transformers` for a model with trained heads, and those of them that it has.

    Args:
        name: of the family.
        heads: groups of our parameters.

    Raises:
        UserError: the family has no class with so few.
    """
    classes = _family(name).classes
    for has, found in classes.items():
        if set(has) <= set(heads):
            return found, has
    raise UserError(
        f"a Hugging Face {name} predicts tokens, and this model was not trained to: it cannot be "
        "exported as one"
    )


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that a ``config.json`` names; UserError if it is not known."""
    return _family(config.get("model_type"))


def switches(config: Mapping[str, Any]) -> TransformerConfig:
    """Our switches of a ``config.json``; errors as for `import_model`."""
    family = family_of(config)
    if config.get("quantization_config"):
        raise UserError(
            "the model is quantized, by the quantization_config in its config.json: import the "
            "one that it was made of"
        )
    config = family.read(config)
    for key, allowed in family.options.items():
        if config.get(key) not in allowed:
            raise UserError(
                f"{key} is {config.get(key)!r} in the model's config.json: only "
                f"{', '.join(repr(a) for a in allowed if a is not None)} can be imported"
            )
    values: dict[str, Any] = {"mlp_width": 0, **family.absent}
    usual = TransformerConfig(**PRESETS[family.preset])
    for ours, (theirs, *_) in family.sizes.items():
        value = config.get(theirs)
        if value is not None:  # else there is a default, which is ours too
            kind = type(getattr(usual, ours))
            if not isinstance(value, int | float if kind is float else kind):
                raise UserError(
                    f"{theirs} is {value!r} in the model's config.json: it must be {kind.__name__}"
                )
            values[ours] = value
        elif ours in ("vocab_size", "width", "layers", "heads"):
            raise UserError(f"the model's config.json has no {theirs}: it is incomplete")
    return TransformerConfig(**PRESETS[family.preset] | values)


def settings(name: str, config: TransformerConfig) -> dict[str, Any]:
    """The ``config.json`` of a backbone; arguments and errors as for `export_model`."""
    family = _family(name)
    preset = TransformerConfig(**PRESETS[family.preset])
    derived = {
        "mlp_width": config.size_of_mlp,
        "kv_heads": config.number_of_kv_heads,
        "head_width": config.size_of_head,
        "embedding_width": config.size_of_embedding,
    }
    # What follows from the other sizes, where a family has no key for it.
    usual = {
        "mlp_width": 4 * config.width,
        "kv_heads": config.heads,
        "head_width": config.width // config.heads,
        "embedding_width": config.width,
    }
    written: dict[str, Any] = {"model_type": name}
    free = {*HOW, *DROPPED, *family.sizes}
    for ours, theirs in family.sizes.items():
        value = derived.get(ours, getattr(config, ours))
        if value == 0 and ours in ("token_types", "decoder_layers"):
            raise UserError(
                f"model.{ours} is 0, and a Hugging Face {name} has at least 1: it cannot be "
                "exported as one"
            )
        for key in theirs:
            if written.setdefault(key, value) != value and ours not in DROPPED:
                raise UserError(
                    f"model.{ours} is {value}, and a Hugging Face {name} has {key} for it, which "
                    f"is {written[key]} already: make the two the same"
                )
    for field in fields(TransformerConfig):
        have = derived.get(field.name, getattr(config, field.name))
        need = usual.get(field.name, getattr(preset, field.name))
        if field.name not in free and _in_use(field.name, config) and have != need:
            raise UserError(
                f"model.{field.name} is {have!r}, and a Hugging Face {name} has {need!r}: it "
                "cannot be exported as one"
            )
    options = {key: allowed[0] for key, allowed in family.options.items()}
    return family.written(written | options)


def _in_use(name: str, config: TransformerConfig) -> bool:
    """Whether what a model computes can depend on this switch."""
    if name.startswith("relative_"):
        return config.positions == "relative"
    if name in ("rotary_base", "rotary_factor"):
        return config.positions == "rotary"
    if name.startswith("rotary_"):
        return config.positions == "rotary" and config.rotary_factor != 1.0
    if name in ("global_every", "local_rotary_base"):
        return config.local_window > 0
    return name not in ("init_scale", "max_length")


def _family(name: Any) -> Family:
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(
            f"model_type is {name!r} in the model's config.json: it must be one of "
            f"{', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[name]
