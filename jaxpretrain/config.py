"""From a config file and the command line to a complete, checked config.

A config file holds only what it wants to say. Every other key and its default is read off the
signature of the component that the section configures, so a default is written in one place: the
code that uses it. The complete config has every key, and it is what a run stores.
"""

import importlib.util
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from jaxpretrain.data.prepare_request import tokenizer_request
from jaxpretrain.data.sources import SOURCES
from jaxpretrain.data.tasks import TASKS, TaskSource
from jaxpretrain.errors import UserError
from jaxpretrain.models.config import TransformerConfig
from jaxpretrain.models.presets import PRESETS
from jaxpretrain.objectives import OBJECTIVES, Mixture, Objective, Task
from jaxpretrain.objectives.mixture import settings_of_task
from jaxpretrain.optim import Optimizer, make_optimizer
from jaxpretrain.schema import (
    FromCommandLine,
    Named,
    Parts,
    Selected,
    Setting,
    UnknownKey,
    checked,
    complete_section,
    did_you_mean,
    settings_of,
    text_of,
)
from jaxpretrain.settings import (
    CheckpointSettings,
    DataSettings,
    DownstreamSettings,
    EvaluateSettings,
    GuardSettings,
    StoreSettings,
    TrackSettings,
    TrainSettings,
)
from jaxpretrain.sharding import DEFAULT_RULES, make_mesh
from jaxpretrain.storage import json_object


def _model_settings(preset: str) -> dict[str, Setting]:
    settings = settings_of(TransformerConfig)
    chosen = PRESETS[preset]
    return {
        name: Setting(setting.type, chosen.get(name, setting.default))
        for name, setting in settings.items()
    }


WEIGHT = {"weight": Setting(float, 1.0)}
TASK = settings_of(Task)
PLAIN = {name: cls for name, cls in OBJECTIVES.items() if cls is not Mixture}
SOURCE = Selected(
    "name",
    "embedded",
    SOURCES,
    lambda name: settings_of(SOURCES[name]),
    Parts("parts", "source", WEIGHT, {}),
)
OBJECTIVE = Selected(
    "name",
    "mlm",
    PLAIN,
    lambda name: settings_of(PLAIN[name]),
    Parts("tasks", "objective", TASK, settings_of(Mixture)),
)

TASKS_BY_NAME = Named(
    "a task",
    Selected("name", "embedded", TASKS, lambda name: settings_of(TASKS[name])),
    {"packages": {"name": "embedded"}},
)

SECTIONS: dict[str, dict[str, Setting] | Selected | Named] = {
    "source": SOURCE,
    "store": settings_of(StoreSettings),
    "tokenizer": settings_of(tokenizer_request),
    "data": settings_of(DataSettings),
    "model": Selected("preset", "base", PRESETS, _model_settings),
    "objective": OBJECTIVE,
    "optimizer": settings_of(make_optimizer, without=("total_steps",)),
    "train": settings_of(TrainSettings),
    "mesh": settings_of(make_mesh, without=("devices",))
    | {"rules": Setting(dict[str, str], DEFAULT_RULES)},
    "checkpoint": settings_of(CheckpointSettings),
    "evaluate": settings_of(EvaluateSettings),
    "guard": settings_of(GuardSettings),
    "track": settings_of(TrackSettings),
    "downstream": settings_of(DownstreamSettings),
    "tasks": TASKS_BY_NAME,
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
    raw = read_file(path)
    for key, text in (overrides or {}).items():
        override(raw, key, text)
    return complete(raw)


def complete(raw: Mapping[str, Any] | ConfigDict) -> ConfigDict:
    """Fills in every default, checks every key, type and value; see `load`."""
    raw = raw.to_dict() if isinstance(raw, ConfigDict) else raw
    unknown = set(raw) - set(SECTIONS) - {"seed"}
    if unknown:
        raise UnknownKey(min(unknown), [*SECTIONS, "seed"])
    done: dict[str, Any] = {"seed": checked("seed", Setting(int, 0), raw.get("seed", 0))}
    for name, section in SECTIONS.items():
        given = raw.get(name, section.default if isinstance(section, Named) else {})
        if not isinstance(given, Mapping):
            raise UserError(
                f"config.{name} is {text_of(given)!r}: it is a section, set the keys below it"
            )
        try:
            done[name] = complete_section(name, section, given)
        except UnknownKey as error:
            plain = {n: s for n, s in SECTIONS.items() if isinstance(s, dict)}
            elsewhere = [f"{n}.{key}" for n, s in plain.items() for key in s]
            raise UnknownKey(error.key, error.known, elsewhere) from None
    config = ConfigDict(done)
    check(config)
    return config.lock()


def check(config: ConfigDict) -> None:
    """Raises UserError for values that no component would accept."""
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed is {config.seed}: it must be in [0, 2**32)")
    StoreSettings(**config.store)
    for name, weight in (sources(config)[1] or {}).items():
        if not weight > 0:
            raise UserError(f"config.source.parts.{name}.weight is {weight}: it must be above 0")
    data = DataSettings(**config.data)
    train = TrainSettings(**config.train)
    CheckpointSettings(**config.checkpoint)
    EvaluateSettings(**config.evaluate)
    GuardSettings(**config.guard)
    TrackSettings(**config.track)
    DownstreamSettings(**config.downstream)
    downstream_tasks(config)
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
    node, last = section_of(raw, key)
    node[last] = FromCommandLine(text, in_file=node.get(last))


def section_of(raw: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The section of a raw config that holds a dotted key, made if need be, and the key in it.

    Raises:
        UserError: what is above it is no section.
    """
    *folders, last = key.split(".")
    node = raw
    for folder in folders:
        node = node.setdefault(folder, {})
        if not isinstance(node, dict):
            raise UserError(f"config.{key} is not a setting: {folder} has no keys below it")
    return node, last


def model_config(config: ConfigDict, vocab_size: int = 0) -> TransformerConfig:
    """The model section as a TransformerConfig."""
    values = {key: value for key, value in config.model.items() if key != "preset"}
    return TransformerConfig(vocab_size=vocab_size, **values)


def make_objective(config: ConfigDict) -> Objective:
    """The objective section as an Objective, not yet bound to a model."""
    values = config.objective.to_dict()
    name = values.pop("name")
    if name != Mixture.name:
        return OBJECTIVES[name](**values)

    def task(name: str, section: dict) -> Task:
        own = {key: section.pop(key) for key in TASK}
        with settings_of_task(name):
            objective = OBJECTIVES[section.pop("name")](**section)
        return Task(name=name, objective=objective, **own)

    # By name: which rows are whose must not depend on the order of the sections.
    tasks = tuple(task(name, section) for name, section in sorted(values.pop("tasks").items()))
    return Mixture(tasks=tasks, **values)


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


def downstream_tasks(config: ConfigDict) -> dict[str, TaskSource]:
    """The section of downstream tasks as tasks by name.

    Raises:
        UserError: values that do not go together, with the name of the task.
    """
    found = {}
    for name, section in config.tasks.items():
        values = {key: value for key, value in section.items() if key != "name"}
        try:
            found[name] = TASKS[section["name"]](**values)
        except UserError as error:
            raise UserError(f"config.tasks.{name}: {error}") from None
    return found


class _Unfit(Exception):
    """A file has no such function, or none that takes what it is asked."""


def _maker(module: ModuleType, function: str, file: str, argument: str) -> Callable:
    """The function of a config file; raises _Unfit."""
    if not hasattr(module, function):
        if hasattr(module, "get_ablation"):
            raise _Unfit(f"{file} is an ablation, of several runs: use 'jaxpretrain ablate'")
        if hasattr(module, "get_config"):
            raise _Unfit(
                f"{file} is the config of one run, which has no {function}(): see configs/ablations"
            )
        raise _Unfit(f"{file} has no {function}()")
    make = getattr(module, function)
    if argument and not inspect.signature(make).parameters:
        raise _Unfit(f"{file} takes no argument, and was given {argument!r}")
    return make


def read_file(path: str, function: str = "get_config") -> dict[str, Any]:
    """What a function in a Python file returns, or what a run's ``config.json`` holds.

    Args:
        path: of the file; after a colon, an argument for the function.
        function: its name.

    Raises:
        UserError: no such file, an error in it with its line, or not a mapping.
    """
    file, _, argument = path.partition(":")
    if not Path(file).is_file():
        near = sorted(str(p) for p in Path(file).parent.glob("*.py"))
        raise UserError(f"there is no config file {file}{did_you_mean(file, near)}")
    if Path(file).suffix == ".json":
        return json_object(Path(file))
    if Path(file).suffix != ".py":
        raise UserError(
            f"{file} is no config file: it must be Python, with {function}(), in .py, or the "
            "config.json of a run"
        )
    spec = importlib.util.spec_from_file_location("jaxpretrain_config_file", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        make = _maker(module, function, file, argument)
        config = make(argument) if argument else make()
    except _Unfit as error:
        raise UserError(str(error)) from None
    except Exception as error:
        line = next(
            (f.lineno for f in reversed(inspect.getinnerframes(error.__traceback__))
             if f.filename == file),
            getattr(error, "lineno", None),
        )  # fmt: skip
        where = f"{file}:{line}" if line else file
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict | Mapping):
        raise UserError(f"{file}: {function}() returned {type(config).__name__}, not a ConfigDict")
    return config.to_dict() if isinstance(config, ConfigDict) else dict(config)
