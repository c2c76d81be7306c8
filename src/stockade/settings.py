"""The machinery under the configuration: settings are fields of frozen dataclasses, read from text and tables.

A setting is a dataclass field made by `setting`; its type says what is accepted, the ending of its name what the unit
is (`…_bytes` takes "128MiB" too, `…_s` takes "500ms" too). Nothing here knows which settings there are:
`stockade.config` and the dialects declare theirs.
"""

import dataclasses
import difflib
import math
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from stockade.errors import Invalid

__all__ = [
    "ConfigError",
    "Given",
    "Setting",
    "construct",
    "describe",
    "from_environment",
    "from_table",
    "parse_duration",
    "parse_size",
    "setting",
]

T = TypeVar("T")
PREFIX = "STOCKADE_"
_METADATA = "stockade.setting"


class ConfigError(Invalid):
    """A setting is unknown or has a value that it cannot take; the message says where it was given."""

    code = "config.invalid"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting, as the documentation shows it and the readers look it up."""

    key: str
    """Dotted path, as in the file: `sandbox.defaults.memory_bytes`."""
    env: tuple[str, ...]
    """Environment variables, the canonical one first; where several are set, the first counts."""
    type: Any
    help: str
    default: str
    """As text; for a default that depends on the host, a description of it."""
    secret: bool
    at_least: float | None
    at_most: float | None
    parse: Callable[[str], object] | None

    @property
    def kind(self) -> str:
        """What it takes, in words."""
        return _kind(self.type, self.key)


@dataclass(frozen=True, kw_only=True)
class Given:
    """A value somebody set, and where."""

    value: object
    origin: str
    """For messages: a file and key, an environment variable, an option."""


def setting(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    env: tuple[str, ...] = (),
    secret: bool = False,
    factory: Callable[[], Any] | None = None,
    shown: str | Mapping[str, str] | None = None,
    members: Mapping[str, str] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    parse: Callable[[str], object] | None = None,
) -> Any:
    """A dataclass field that is a setting.

    Args:
        default: its value when nobody sets it.
        help: what it does, in a sentence or two; goes into the documentation.
        env: further environment variables beside `STOCKADE_<SECTION>_<NAME>`.
        secret: keep it out of `repr` and of everything printed.
        factory: makes the default where that depends on the host (or is a mapping).
        shown: the default in words, for the documentation; for a record, words for some of its members.
        members: help for the members of a record that is no settings class itself.
        at_least, at_most: bounds of a number, inclusive.
        parse: reads the text of a string setting; raises `ValueError` to refuse it.
    """
    metadata = {
        _METADATA: {
            "help": help,
            "env": env,
            "secret": secret,
            "shown": shown,
            "members": members or {},
            "at_least": at_least,
            "at_most": at_most,
            "parse": parse,
        }
    }
    if factory is not None:
        return dataclasses.field(default_factory=factory, repr=not secret, metadata=metadata)
    return dataclasses.field(default=default, repr=not secret, metadata=metadata)


def describe(cls: type, prefix: str = "") -> Iterator[Setting]:
    """Every setting of the settings class *cls*, members of its records included, in order of declaration."""
    yield from _describe(cls, prefix, base=None, inherited={})


def _describe(cls: type, prefix: str, *, base: object, inherited: Mapping[str, Any]) -> Iterator[Setting]:
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        own = field.metadata.get(_METADATA)
        key = f"{prefix}.{field.name}" if prefix else field.name
        default = _default(field, base)
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _describe(hints[field.name], key, base=default, inherited=own or {})
            continue
        if own is None and field.name not in inherited.get("members", {}):
            continue  # not for the operator to set
        about = own or {"help": inherited["members"][field.name]}
        shown = about.get("shown") or (inherited.get("shown") or {}).get(field.name)
        yield Setting(
            key=key,
            env=(variable(key), *about.get("env", ())),
            type=hints[field.name],
            help=about["help"],
            default=str(shown) if shown is not None else _show(default, key),
            secret=about.get("secret", False),
            at_least=about.get("at_least"),
            at_most=about.get("at_most"),
            parse=about.get("parse"),
        )


def variable(key: str) -> str:
    """The canonical environment variable of a setting."""
    return PREFIX + re.sub(r"[.-]", "_", key).upper()


def construct(cls: type[T], values: Mapping[str, object], prefix: str = "", base: object = None) -> T:
    """An instance of *cls* with *values* (by dotted key) over its defaults, or over *base*."""
    hints = get_type_hints(cls)
    arguments: dict[str, object] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # T is always a dataclass
        key = f"{prefix}.{field.name}" if prefix else field.name
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            arguments[field.name] = construct(hint, values, key, _default(field, base))
        elif key in values:
            arguments[field.name] = values[key]
        else:
            arguments[field.name] = _default(field, base)
    return cls(**arguments)


def _default(field: "dataclasses.Field[Any]", base: object) -> object:
    if base is not None:
        return getattr(base, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def from_table(table: Mapping[str, object], settings: Mapping[str, Setting], origin: str) -> dict[str, Given]:
    """The settings of a nested table, checked and by dotted key.

    Raises:
        ConfigError: a key is unknown (the nearest known one is named), or a value does not fit.
    """
    found: dict[str, Given] = {}
    _walk(table, "", settings, origin, found)
    return found


def _walk(
    table: Mapping[str, object], prefix: str, settings: Mapping[str, Setting], origin: str, found: dict[str, Given]
) -> None:
    for name, value in table.items():
        key = f"{prefix}.{name}" if prefix else name
        place = f"{origin}: {key}"
        if key in settings:
            found[key] = Given(value=_read(settings[key], value, place), origin=place)
        elif any(known.startswith(f"{key}.") for known in settings):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{place}: must be a table ([{key}])")
            _walk(value, key, settings, origin, found)
        else:
            raise ConfigError(f"{place}: no such setting{_nearest(key, settings)}")


def from_environment(
    environ: Mapping[str, str], settings: Mapping[str, Setting], sections: Iterable[str]
) -> dict[str, Given]:
    """The settings that *environ* sets, by dotted key. A variable that is set but empty counts as not set.

    Variables of the form STOCKADE_<SECTION>_… that name no setting are refused, so that a misspelt limit does not
    go unnoticed; further STOCKADE_ variables may belong to others (Kubernetes makes STOCKADE_PORT and the like).

    Raises:
        ConfigError: see above, or a value does not fit.
    """
    found: dict[str, Given] = {}
    known = {name: one for one in settings.values() for name in one.env}
    for one in settings.values():
        for name in one.env:
            if text := environ.get(name, ""):
                place = f"environment variable {name}"
                found[one.key] = Given(value=_read(one, text, place), origin=place)
                break
    guarded = tuple(variable(section) + "_" for section in sections)
    for name in environ:
        if name.startswith(guarded) and name not in known:
            raise ConfigError(f"environment variable {name}: no such setting{_nearest(name, known)}")
    return found


def read(one: Setting, value: object, place: str) -> object:
    """*value* (text, or what a TOML file has) as the setting's own type.

    Raises:
        ConfigError: it does not fit; the message begins with *place*.
    """
    return _read(one, value, place)


def _read(one: Setting, value: object, place: str) -> object:
    try:
        if one.parse is not None and isinstance(value, str):
            return one.parse(value)
        result = _convert(one.type, value, one.key)
    except ValueError as error:
        # A secret's text stays out of the message: messages end up in logs.
        got = "" if one.secret else f" (got {value!r})"
        raise ConfigError(f"{place}: {error}{got}") from None
    if isinstance(result, int | float) and not isinstance(result, bool):
        if one.at_least is not None and result < one.at_least:
            raise ConfigError(f"{place}: must be at least {one.at_least:g} (got {value!r})")
        if one.at_most is not None and result > one.at_most:
            raise ConfigError(f"{place}: must be at most {one.at_most:g} (got {value!r})")
    return result


def _convert(hint: Any, value: object, key: str) -> object:
    """*value* as the type *hint*; raises `ValueError` with what is expected."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        (inner,) = (one for one in get_args(hint) if one is not type(None))
        return _convert(inner, value, key)
    if origin is Literal:
        if value in get_args(hint):
            return value
        raise ValueError(f"must be one of {', '.join(get_args(hint))}")
    if origin is tuple:
        return _strings(value)
    if origin is not None and issubclass(origin, Mapping):
        return _pairs(value)
    if hint is bool:
        return _boolean(value)
    if hint is int:
        return _whole(value, size=key.endswith("_bytes"))
    if hint is float:
        return _number(value, duration=key.endswith("_s"))
    if hint is str or hint is Path:
        if not isinstance(value, str):
            raise ValueError("must be a string")
        return Path(value).expanduser() if hint is Path else value
    raise TypeError(f"a setting cannot have the type {hint!r}")  # a mistake in our own declaration


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    raise ValueError("must be true or false")


def _whole(value: object, *, size: bool) -> int:
    if isinstance(value, str):
        return parse_size(value) if size else _integer(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a whole number" + (' of bytes, or text like "128MiB"' if size else ""))
    return value


def _integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text.strip()):
        raise ValueError("must be a whole number")
    return int(text)


def _number(value: object, *, duration: bool) -> float:
    if isinstance(value, str):
        return parse_duration(value) if duration else _finite(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("must be a number" + (' of seconds, or text like "500ms"' if duration else ""))
    return float(value)


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("must be a number")
    return number


def _strings(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return tuple(value)
    raise ValueError('must be a list of strings (in the environment: "one,two")')


def _pairs(value: object) -> dict[str, str]:
    if isinstance(value, str):
        parts = [part.partition("=") for part in _strings(value)]
        if all(name and equals for name, equals, _ in parts):
            return {name.strip(): text.strip() for name, _, text in parts}
    elif isinstance(value, Mapping) and all(isinstance(text, str) for text in value.values()):
        return dict(value)
    raise ValueError('must be a table of strings (in the environment: "name=text,name=text")')


_SIZES = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _SIZES |= {_letter: 1024**_power, f"{_letter}i": 1024**_power, f"{_letter}ib": 1024**_power}
    _SIZES[f"{_letter}b"] = 1000**_power
_DURATIONS = {"": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str) -> int:
    """Bytes in "512", "64k", "128MiB", "1.5 GB"; a bare letter and KiB, MiB, … count by 1024, KB, MB, … by 1000."""
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _SIZES:
        raise ValueError('must be a size like "128MiB"')
    return (
        int(float(match[1]) * _SIZES[match[2].lower()]) if "." in match[1] else int(match[1]) * _SIZES[match[2].lower()]
    )


def parse_duration(text: str) -> float:
    """Seconds in "10", "500ms", "1.5s", "2m", "1h"."""
    match = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _DURATIONS:
        raise ValueError('must be a duration like "10s" or "500ms"')
    return float(match[1]) * _DURATIONS[match[2].lower()]


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else "; docs/configuration.md lists all of them"


def _kind(hint: Any, key: str) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _kind(next(one for one in get_args(hint) if one is not type(None)), key)
    if origin is Literal:
        return " | ".join(f'"{one}"' for one in get_args(hint))
    if origin is tuple:
        return "list of strings"
    if origin is not None:
        return "table of strings"
    if hint is int and key.endswith("_bytes"):
        return "size"
    if hint is float and key.endswith("_s"):
        return "duration"
    return {bool: "true | false", int: "whole number", float: "number", str: "string", Path: "path"}[hint]


def _show(value: object, key: str) -> str:
    if value is None or value == "" or value == () or value == {}:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and key.endswith("_bytes"):
        return show_size(value)
    if isinstance(value, float) and key.endswith("_s"):
        return f"{value:g}s"
    if isinstance(value, tuple):
        return ", ".join(str(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def show_size(value: int) -> str:
    """A size as one writes it in a file: "128MiB"."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power and value % 1024**power == 0:
            return f"{value // 1024**power}{unit}"
    return str(value)
