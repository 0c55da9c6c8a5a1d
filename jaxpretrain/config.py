"""From a config file and the command line to a complete, checked config.

A config file holds only what it wants to say. Every other key and its default is read off the
signature of the component that the section configures, so a default is written in one place: the
code that uses it. The complete config has every key, and it is what a run stores.
"""

import dataclasses
import difflib
import importlib.util
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ml_collections import ConfigDict

from jaxpretrain.data.prepare_request import tokenizer_request
from jaxpretrain.data.sources import SOURCES
from jaxpretrain.errors import UserError
from jaxpretrain.models.config import TransformerConfig
from jaxpretrain.models.presets import PRESETS
from jaxpretrain.objectives import OBJECTIVES, Objective
from jaxpretrain.optim import Optimizer, make_optimizer
from jaxpretrain.settings import (
    CheckpointSettings,
    DataSettings,
    EvaluateSettings,
    StoreSettings,
    TrainSettings,
)
from jaxpretrain.sharding import DEFAULT_RULES, make_mesh


class Setting(NamedTuple):
    """One key: the type that its value must have, and the value it has when not set."""

    type: Any
    default: Any


class FromCommandLine(NamedTuple):
    """A value as typed, still to be read as the type of its key, and what the file had there."""

    text: str
    in_file: Any = None


class Selected(NamedTuple):
    """A section whose keys depend on the value of one of them."""

    key: str
    default: str
    choices: Mapping[str, Any]
    settings: Callable[[str], dict[str, Setting]]


def settings_of(component: Callable, *, without: tuple[str, ...] = ()) -> dict[str, Setting]:
    """The keyword arguments of a function or dataclass, as settings."""
    hidden = set(without)
    if dataclasses.is_dataclass(component):
        fields = dataclasses.fields(component)
        hidden |= {f.name for f in fields if not f.metadata.get("config", True)}
    hints = typing.get_type_hints(component if inspect.isfunction(component) else component)
    found = {}
    for name, parameter in inspect.signature(component).parameters.items():
        if name in hidden:
            continue
        default = parameter.default
        if dataclasses.is_dataclass(component):
            field = component.__dataclass_fields__[name]
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
        found[name] = Setting(hints[name], default)
    return found


def _model_settings(preset: str) -> dict[str, Setting]:
    settings = settings_of(TransformerConfig)
    chosen = PRESETS[preset]
    return {
        name: Setting(setting.type, chosen.get(name, setting.default))
        for name, setting in settings.items()
    }


SOURCE = Selected("name", "embedded", SOURCES, lambda name: settings_of(SOURCES[name]))

SECTIONS: dict[str, dict[str, Setting] | Selected] = {
    "source": SOURCE,
    "store": settings_of(StoreSettings),
    "tokenizer": settings_of(tokenizer_request),
    "data": settings_of(DataSettings),
    "model": Selected("preset", "base", PRESETS, _model_settings),
    "objective": Selected("name", "mlm", OBJECTIVES, lambda name: settings_of(OBJECTIVES[name])),
    "optimizer": settings_of(make_optimizer, without=("total_steps",)),
    "train": settings_of(TrainSettings),
    "mesh": settings_of(make_mesh, without=("devices",))
    | {"rules": Setting(dict[str, str], DEFAULT_RULES)},
    "checkpoint": settings_of(CheckpointSettings),
    "evaluate": settings_of(EvaluateSettings),
}


def load(path: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """Reads a config file, applies the command line, completes and checks the whole.

    Args:
        path: a Python file with ``get_config()``, or ``file.py:argument`` for
            ``get_config("argument")``.
        overrides: dotted key to text, as typed: ``{"objective.mask_rate": "0.3"}``.

    Returns:
        A locked ConfigDict with every key.

    Raises:
        UserError: in one line, whatever is wrong with the file, a key, a type or a value.
    """
    raw = _read_file(path)
    for key, text in (overrides or {}).items():
        override(raw, key, text)
    return complete(raw)


def complete(raw: Mapping[str, Any] | ConfigDict) -> ConfigDict:
    """Fills in every default, checks every key, type and value; see `load`."""
    raw = raw.to_dict() if isinstance(raw, ConfigDict) else raw
    unknown = set(raw) - set(SECTIONS) - {"seed"}
    if unknown:
        raise _unknown(min(unknown), [*SECTIONS, "seed"])
    done: dict[str, Any] = {"seed": _checked("seed", Setting(int, 0), raw.get("seed", 0))}
    for name, section in SECTIONS.items():
        given = raw.get(name, {})
        if not isinstance(given, Mapping):
            raise UserError(
                f"config.{name} is {_text(given)!r}: it is a section, set the keys below it"
            )
        done[name] = _complete_section(name, section, given)
    config = ConfigDict(done)
    check(config)
    return config.lock()


def check(config: ConfigDict) -> None:
    """Raises UserError for values that no component would accept."""
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed is {config.seed}: it must be in [0, 2**32)")
    StoreSettings(**config.store)
    data = DataSettings(**config.data)
    train = TrainSettings(**config.train)
    CheckpointSettings(**config.checkpoint)
    EvaluateSettings(**config.evaluate)
    model = model_config(config)
    if model.positions == "learned" and data.length > model.max_length:
        raise UserError(
            f"data.length is {data.length} and model.max_length {model.max_length}: a model with "
            "learned positions cannot read longer rows; raise model.max_length"
        )
    if train.stop_at > train.steps:
        raise UserError(f"train.stop_at is {train.stop_at}, beyond train.steps {train.steps}")
    make_objective(config)
    optimizer(config)


def override(raw: dict[str, Any], key: str, text: str) -> None:
    """Sets a dotted key of a raw config to a value as typed on the command line."""
    *folders, last = key.split(".")
    node = raw
    for folder in folders:
        node = node.setdefault(folder, {})
        if not isinstance(node, dict):
            raise UserError(f"config.{key} is not a setting: {folder} has no keys below it")
    node[last] = FromCommandLine(text, in_file=node.get(last))


def model_config(config: ConfigDict, vocab_size: int = 0) -> TransformerConfig:
    """The model section as a TransformerConfig."""
    values = {key: value for key, value in config.model.items() if key != "preset"}
    return TransformerConfig(vocab_size=vocab_size, **values)


def make_objective(config: ConfigDict) -> Objective:
    """The objective section as an Objective, not yet bound to a model."""
    values = {key: value for key, value in config.objective.items() if key != "name"}
    return OBJECTIVES[config.objective.name](**values)


def optimizer(config: ConfigDict) -> Optimizer:
    """The optimizer section as an Optimizer."""
    return make_optimizer(total_steps=config.train.steps, **config.optimizer)


def sources(config: ConfigDict) -> tuple[dict[str, Any], dict[str, float] | None]:
    """The source section as sources by name, and the weights of a mixture (else None)."""

    def one(section: Mapping) -> Any:
        values = {k: v for k, v in section.items() if k not in ("name", "weight")}
        return SOURCES[section["name"]](**values)

    if config.source.name != "mixture":
        return {config.source.name: one(config.source)}, None
    parts = config.source.parts
    return {name: one(part) for name, part in parts.items()}, {
        name: part["weight"] for name, part in parts.items()
    }


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as dotted keys and values."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _read_file(path: str) -> dict[str, Any]:
    file, _, argument = path.partition(":")
    if not Path(file).is_file():
        near = sorted(str(p) for p in Path(file).parent.glob("*.py"))
        raise UserError(f"there is no config file {file}{_did_you_mean(file, near)}")
    if Path(file).suffix != ".py":
        raise UserError(f"{file} is no config file: it must be Python, with get_config(), in .py")
    spec = importlib.util.spec_from_file_location("jaxpretrain_config_file", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        make = module.get_config
        config = make(argument) if argument else make()
    except Exception as error:
        line = next(
            (f.lineno for f in reversed(inspect.getinnerframes(error.__traceback__))
             if f.filename == file),
            getattr(error, "lineno", None),
        )  # fmt: skip
        where = f"{file}:{line}" if line else file
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict | Mapping):
        raise UserError(f"{file}: get_config() returned {type(config).__name__}, not a ConfigDict")
    return config.to_dict() if isinstance(config, ConfigDict) else dict(config)


def _complete_section(name: str, section: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(section, Selected):
        if section is SOURCE and _text(given.get("name")) == "mixture":
            return _complete_mixture(name, given)
        return _complete_selected(name, section, given)
    done = {}
    for key in given:
        if key not in section:
            raise _unknown(f"{name}.{key}", [f"{name}.{k}" for k in section])
    for key, setting in section.items():
        value = given.get(key, setting.default)
        if value is inspect.Parameter.empty:
            raise UserError(f"config.{name}.{key} is not set: it has no default, give it a value")
        done[key] = _checked(f"{name}.{key}", setting, value)
    return done


def _complete_selected(name: str, section: Selected, given: Mapping[str, Any]) -> dict[str, Any]:
    choice = given.get(section.key, section.default)
    picked = _text(choice)
    options = [*section.choices, *(["mixture"] if section is SOURCE else [])]
    if picked not in options:
        raise UserError(
            f"config.{name}.{section.key} is {picked!r}: it must be one of {', '.join(options)}"
            + _did_you_mean(str(picked), options)
        )
    settings = section.settings(picked)
    rest = {key: value for key, value in given.items() if key != section.key}
    before = getattr(choice, "in_file", None) or section.default
    if isinstance(choice, FromCommandLine) and before in section.choices:
        # The file spoke of another choice: keys that only that one has do not apply. (Presets have
        # the same keys, so what the file sets stays.)
        gone = section.settings(before).keys() - settings.keys()
        rest = {k: v for k, v in rest.items() if k not in gone or isinstance(v, FromCommandLine)}
    for key in rest.keys() - settings.keys():
        owners = [c for c in section.choices if key in section.settings(c)]
        if owners:
            raise UserError(
                f"config.{name}.{key} is not a setting of {picked!r}, but of {', '.join(owners)}: "
                f"set config.{name}.{section.key} too"
            )
    return {section.key: picked} | _complete_section(name, settings, rest)


def _complete_mixture(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    parts = given.get("parts", {})
    if not isinstance(parts, Mapping) or not parts:
        raise UserError(
            f"config.{name}.parts is empty: a mixture has a section for each source, "
            "with its name, its keys and a weight"
        )
    extra = set(given) - {"name", "parts"}
    if extra:
        raise _unknown(f"{name}.{min(extra)}", [f"{name}.parts", f"{name}.name"])
    done = {}
    for part, values in parts.items():
        where = f"{name}.parts.{part}"
        if not isinstance(values, Mapping):
            raise UserError(f"config.{where} is {_text(values)!r}: it is a section")
        if SOURCE.key not in values:
            near = _did_you_mean(part, [other for other in parts if other != part])
            raise UserError(f"config.{where}.name is not set: a part says what it is{near}")
        weight = _checked(f"{where}.weight", Setting(float, 1.0), values.get("weight", 1.0))
        if not weight > 0:
            raise UserError(f"config.{where}.weight is {weight}: it must be above 0")
        values = {key: value for key, value in values.items() if key != "weight"}
        done[part] = _complete_selected(where, SOURCE, values) | {"weight": weight}
    return {"name": "mixture", "parts": done}


def _checked(key: str, setting: Setting, value: Any) -> Any:
    kind = setting.type
    origin = typing.get_origin(kind)
    if origin is dict:  # its keys are those of its default
        if not isinstance(value, Mapping):
            raise UserError(f"config.{key} is {_text(value)!r}: it is a section")
        kind_of_item = typing.get_args(kind)[1]
        inner = {name: Setting(kind_of_item, item) for name, item in setting.default.items()}
        return _complete_section(key, inner, value)
    if isinstance(value, Mapping):
        raise UserError(
            f"config.{key} has no keys below it: it must be {_TYPES.get(kind, 'one value')}"
        )
    if isinstance(value, FromCommandLine):
        value = _read(key, kind, value.text)
    if origin is Literal:
        options = typing.get_args(kind)
        if value not in options:
            near = _did_you_mean(str(value), options)
            choices = ", ".join(map(str, options))
            raise UserError(f"config.{key} is {value!r}: it must be one of {choices}{near}")
        return value
    if origin in (types.UnionType, typing.Union):
        raise TypeError(f"{key}: settings have one type, not {kind}")
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"config.{key} is {value!r}: it must be {_TYPES[kind]}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"config.{key} is {value}: it must be a finite number")
    return value


_TYPES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
}


def _read(key: str, kind: Any, text: str) -> Any:
    if typing.get_origin(kind) is Literal or kind is str:
        return text
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is int:
            number = float(text) if any(c in text for c in ".eE") else int(text)
            if number != int(number):
                raise ValueError
            return int(number)
        return kind(text)
    except (ValueError, KeyError, OverflowError):
        raise UserError(f"config.{key} is {text!r}: it must be {_TYPES[kind]}") from None


def _text(value: Any) -> Any:
    return value.text if isinstance(value, FromCommandLine) else value


def _unknown(key: str, known: list[str]) -> UserError:
    everything = known + [
        f"{name}.{k}" for name, s in SECTIONS.items() if isinstance(s, dict) for k in s
    ]
    near = _did_you_mean(key, everything)
    return UserError(f"config.{key} is not a setting{near or '; known: ' + ', '.join(known)}")


def _did_you_mean(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""
