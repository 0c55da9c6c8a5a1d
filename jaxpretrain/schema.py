"""The keys that a section of a config may have: read off signatures, completed, checked.

A setting is a keyword argument of the component that a section configures. This file knows nothing
of the components; `config.py` says which section configures which.
"""

import dataclasses
import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jaxpretrain.errors import UserError


class Setting(NamedTuple):
    """One key: the type that its value must have, and the value it has when not set."""

    type: Any
    default: Any


class FromCommandLine(NamedTuple):
    """A value as typed, still to be read as the type of its key, and what the file had there."""

    text: str
    in_file: Any = None


class Parts(NamedTuple):
    """What a mixture of a section's choices has: sections of its own, one for each part.

    Attributes:
        key: below which they are.
        what: they are, in words.
        own: keys of each part beside those of its choice.
        settings: keys of the mixture itself.
    """

    key: str
    what: str
    own: dict[str, Setting]
    settings: dict[str, Setting]


class Selected(NamedTuple):
    """A section whose keys depend on the value of one of them.

    Attributes:
        key: the one.
        default: its value when not set.
        choices: by value.
        settings: the keys of a choice.
        parts: what the choice "mixture" has, if there is one.
    """

    key: str
    default: str
    choices: Mapping[str, Any]
    settings: Callable[[str], dict[str, Setting]]
    parts: Parts | None = None


class Named(NamedTuple):
    """A section of sections, each with a name of the user's own.

    Attributes:
        what: they are, in words.
        section: of each.
        default: what there is when none is set.
    """

    what: str
    section: Selected
    default: dict[str, Any]


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


def complete_section(name: str, section: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fills in the defaults of one section and checks its keys, types and choices.

    Args:
        name: of the section, for messages.
        section: settings by key, or a Selected.
        given: keys and values.
    """
    if isinstance(section, Named):
        return _complete_named(name, section, given)
    if isinstance(section, Selected):
        if section.parts and text_of(given.get(section.key)) == "mixture":
            return _complete_mixture(name, section, given)
        return _complete_selected(name, section, given)
    done = {}
    for key in given:
        if key not in section:
            raise UnknownKey(f"{name}.{key}", [f"{name}.{k}" for k in section])
    for key, setting in section.items():
        value = given.get(key, setting.default)
        if value is inspect.Parameter.empty:
            raise UserError(f"config.{name}.{key} is not set: it has no default, give it a value")
        done[key] = checked(f"{name}.{key}", setting, value)
    return done


def _complete_selected(name: str, section: Selected, given: Mapping[str, Any]) -> dict[str, Any]:
    choice = given.get(section.key, section.default)
    picked = text_of(choice)
    options = [*section.choices, *(["mixture"] if section.parts else [])]
    if picked not in options:
        raise UserError(
            f"config.{name}.{section.key} is {picked!r}: it must be one of {', '.join(options)}"
            + did_you_mean(str(picked), options)
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
    return {section.key: picked} | complete_section(name, settings, rest)


def _complete_named(name: str, section: Named, given: Mapping[str, Any]) -> dict[str, Any]:
    done = {}
    for own, values in given.items():
        where = f"{name}.{own}"
        if not isinstance(own, str) or own == "all" or set(own) & set("/.,"):
            raise UserError(
                f"config.{where}: the name of {section.what} is text without '/', '.' and ',', and "
                "not 'all'"
            )
        if not isinstance(values, Mapping):
            raise UserError(f"config.{where} is {text_of(values)!r}: it is a section")
        values = {**section.default.get(own, {}), **values}
        if section.section.key not in values:
            near = did_you_mean(own, [other for other in given if other != own])
            raise UserError(
                f"config.{where}.{section.section.key} is not set: it must be one of "
                f"{', '.join(section.section.choices)}{near}"
            )
        done[own] = _complete_selected(where, section.section, values)
    return done


def _complete_mixture(name: str, section: Selected, given: Mapping[str, Any]) -> dict[str, Any]:
    parts = section.parts
    sections = given.get(parts.key, {})
    if not isinstance(sections, Mapping) or not sections:
        raise UserError(
            f"config.{name}.{parts.key} is empty: a mixture has a section for each {parts.what}, "
            "with its name, its keys and a weight"
        )
    extra = set(given) - {section.key, parts.key, *parts.settings}
    if extra:
        known = [section.key, parts.key, *parts.settings]
        raise UnknownKey(f"{name}.{min(extra)}", [f"{name}.{key}" for key in known])
    own = {key: value for key, value in given.items() if key in parts.settings}
    done = {}
    for part, values in sections.items():
        where = f"{name}.{parts.key}.{part}"
        if not isinstance(values, Mapping):
            raise UserError(f"config.{where} is {text_of(values)!r}: it is a section")
        if section.key not in values:
            near = did_you_mean(part, [other for other in sections if other != part])
            raise UserError(f"config.{where}.name is not set: a part says what it is{near}")
        if not part or "/" in part or "." in part:
            raise UserError(f"config.{where}: the name of a part has no '/' and no '.' in it")
        shared = {
            key: checked(f"{where}.{key}", setting, values.get(key, setting.default))
            for key, setting in parts.own.items()
        }
        rest = {key: value for key, value in values.items() if key not in parts.own}
        try:
            done[part] = _complete_selected(where, section._replace(parts=None), rest) | shared
        except UnknownKey as error:
            also = [f"{where}.{key}" for key in parts.own]
            raise UnknownKey(error.key, error.known + also) from None
    return (
        {section.key: "mixture"} | complete_section(name, parts.settings, own) | {parts.key: done}
    )


def checked(key: str, setting: Setting, value: Any) -> Any:
    """A value in the type of its setting; raises UserError if it cannot be that."""
    kind = setting.type
    origin = typing.get_origin(kind)
    if origin is dict:  # its keys are those of its default
        if not isinstance(value, Mapping):
            raise UserError(f"config.{key} is {text_of(value)!r}: it is a section")
        kind_of_item = typing.get_args(kind)[1]
        inner = {name: Setting(kind_of_item, item) for name, item in setting.default.items()}
        return complete_section(key, inner, value)
    if isinstance(value, Mapping):
        raise UserError(
            f"config.{key} has no keys below it: it must be {_TYPES.get(kind, 'one value')}"
        )
    if isinstance(value, FromCommandLine):
        value = _read(key, kind, value.text)
    if origin is Literal:
        options = typing.get_args(kind)
        if value not in options:
            near = did_you_mean(str(value), options)
            choices = ", ".join(map(str, options))
            raise UserError(f"config.{key} is {value!r}: it must be one of {choices}{near}")
        return value
    if origin in (types.UnionType, typing.Union):
        raise TypeError(f"{key}: settings have one type, not {kind}")
    if origin is list:
        item = Setting(typing.get_args(kind)[0], None)
        if not isinstance(value, list | tuple):
            raise UserError(f"config.{key} is {value!r}: it must be a list")
        return [checked(f"{key}[{number}]", item, one) for number, one in enumerate(value)]
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
        if typing.get_origin(kind) is list:
            return [
                _read(key, typing.get_args(kind)[0], one) for one in text.strip("[]()").split(",")
            ]
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


def text_of(value: Any) -> Any:
    """The text of a value that was typed, or the value."""
    return value.text if isinstance(value, FromCommandLine) else value


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as dotted keys and values."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


class UnknownKey(UserError):
    """A key that its section does not have.

    Args:
        key: dotted.
        known: the keys of its section, dotted.
        elsewhere: keys of other sections that may have been meant.
    """

    def __init__(self, key: str, known: list[str], elsewhere: Sequence[str] = ()):
        self.key, self.known = key, known
        near = did_you_mean(key, [*known, *elsewhere])
        super().__init__(f"config.{key} is not a setting{near or '; known: ' + ', '.join(known)}")


def did_you_mean(word: str, known: Any) -> str:
    """The one of the known words that is like it, as the end of a message; else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""
