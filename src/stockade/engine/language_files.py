"""How a language is read from its TOML file.

Every key is checked when the file is read, unknown ones are refused, and an error names file and key. What the
keys mean is told in `docs/languages.md`.
"""

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from stockade.engine.language_records import (
    MIB,
    NUMBERS,
    PLACEHOLDER,
    Cache,
    Example,
    Language,
    Step,
    VersionProbe,
)
from stockade.errors import Invalid
from stockade.model import LimitOverrides, Template, TemplateKind

__all__ = ["read_language"]

_NAME = re.compile(r"[a-z][a-z0-9+#.-]*")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9+#.-]*")
_EXTENSION = re.compile(r"\.[A-Za-z0-9+]+")
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*|/[A-Za-z0-9._+*?/-]+")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9.+-]+")
_TEXT = re.compile(r".+", re.DOTALL)
_VARIANT_KEYS = frozenset(
    (
        *("requires", "packages", "host_paths", "image", "files", "env"),
        *("compile", "cache", "run", "template", "limits", "version", "minimum_version", "examples"),
    )
)

# Key in the file -> field of `LimitOverrides`, and how many of the field's units one of the key's is.
_LIMITS: Mapping[str, tuple[str, int]] = {
    "wall_s": ("wall_s", 1),
    "cpu_s": ("cpu_s", 1),
    "cpus": ("cpus", 1),
    "memory_mb": ("memory_bytes", MIB),
    "processes": ("processes", 1),
    "disk_mb": ("disk_bytes", MIB),
    "inodes": ("disk_inodes", 1),
    "open_files": ("open_files", 1),
    "stack_mb": ("stack_bytes", MIB),
    "output_kb": ("output_bytes", 1024),
}
_FRACTIONS = frozenset(("wall_s", "cpu_s", "cpus"))


def read_language(text: str, *, source: str, name: str) -> tuple[Language, ...]:
    """The variants of the language in the TOML *text*, the preferred one first.

    Args:
        source: where the text comes from, for errors.
        name: the name of the file without its extension; the language must be called the same.

    Raises:
        Invalid: not TOML, or a key is missing, unknown or wrong; the message names file and key.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise Invalid(f"{source}: not valid TOML: {error}") from None
    if data.get("name") != name:
        raise Invalid(f"{source}: name: must be {name!r}, as the file is called (got {data.get('name')!r})")
    variants = data.pop("variants", None)
    if variants is None:
        return _checked((_language(_Table(data, source), 0),), source)
    if not isinstance(variants, list) or not variants or not all(isinstance(v, dict) for v in variants):
        raise Invalid(f"{source}: variants: must be tables, written [[variants]]")
    found = []
    for number, variant in enumerate(variants):
        if unknown := sorted(variant.keys() - _VARIANT_KEYS):
            raise Invalid(f"{source}: variants: a variant cannot have {unknown[0]!r}")
        found.append(_language(_Table({**data, **variant}, f"{source} (variant {number + 1})"), number))
    return _checked(tuple(found), source)


def _checked(variants: tuple[Language, ...], source: str) -> tuple[Language, ...]:
    """*variants*, each with the examples that fit it: nothing fails to compile where nothing is compiled."""
    if all(v.compile is None and any(not e.compiles for e in v.examples.values()) for v in variants):
        raise Invalid(f"{source}: examples: compiles is false, but there is no [compile]")
    return tuple(
        replace(v, examples={name: e for name, e in v.examples.items() if e.compiles or v.compile is not None})
        for v in variants
    )


class _Table:
    """A TOML table that is read key by key; `close` refuses what nobody read."""

    def __init__(self, data: dict[str, Any], source: str, prefix: str = "") -> None:
        self._data = data
        self._source = source
        self._prefix = prefix
        self._read: set[str] = set()

    def error(self, key: str, reason: str) -> Invalid:
        return Invalid(f"{self._source}: {self._prefix}{key}: {reason}")

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        self._read.add(key)
        if key not in self._data:
            if default is None:
                raise self.error(key, "is missing")
            return default
        value = self._data[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(key, f"must be {_KINDS[kind]} (got {value!r})")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value: str = self.get(key, str, default)
        if "\0" in value:
            raise self.error(key, "must not hold a NUL character")
        return value

    def texts(
        self, key: str, shape: re.Pattern[str] | None = None, default: list[str] | None = None
    ) -> tuple[str, ...]:
        values = self.get(key, list, default)
        for value in values:
            if not isinstance(value, str) or "\0" in value:
                raise self.error(key, f"must be an array of strings (it holds {value!r})")
            if shape is not None and not shape.fullmatch(value):
                raise self.error(key, f"{value!r} is not of the form {shape.pattern}")
        return tuple(values)

    def mapping(self, key: str) -> dict[str, str]:
        values: dict[str, Any] = self.get(key, dict, {})
        for name, value in values.items():
            if not isinstance(value, str) or "\0" in name + value or not name:
                raise self.error(f"{key}.{name}", f"must be a string (got {value!r})")
        return dict(values)

    def table(self, key: str) -> "_Table | None":
        self._read.add(key)
        if key not in self._data:
            return None
        return _Table(self.get(key, dict), self._source, f"{self._prefix}{key}.")

    def number(self, key: str) -> int | float:
        """A finite number above zero: in a limit, zero never means "none"."""
        self._read.add(key)
        value = self._data[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise self.error(key, f"must be a number greater than zero (got {value!r})")
        return value

    def names(self) -> tuple[str, ...]:
        return tuple(self._data)

    def close(self) -> None:
        if unknown := sorted(self._data.keys() - self._read):
            raise self.error(unknown[0], f"unknown key; known here: {', '.join(sorted(self._read))}")


_KINDS: Mapping[type, str] = {
    str: "a string",
    list: "an array",
    dict: "a table",
    int: "a whole number",
    bool: "true or false",
}


def _language(table: _Table, variant: int) -> Language:
    main_file = _file_name(table, "main_file", table.text("main_file"))
    files = _files(table)
    if main_file in files:
        raise table.error("files", f"{main_file!r} is the main file")
    run = table.table("run")
    if run is None:
        raise table.error("run", "is missing")
    compiling = table.table("compile")
    uncached = () if compiling is None else compiling.texts("uncached", _TEXT, [])
    compile_limits = LimitOverrides() if compiling is None else _limits(compiling.table("limits"))
    compile_step = None if compiling is None else _step(compiling, main_file)
    version = table.table("version")
    language = Language(
        name=_matching(table, "name", _NAME),
        display_name=table.text("display_name"),
        aliases=table.texts("aliases", _ALIAS, []),
        extensions=table.texts("extensions", _EXTENSION, []),
        image=table.text("image", "host"),
        main_file=main_file,
        files=files,
        compile=compile_step,
        compile_limits=compile_limits,
        uncached=tuple(text.encode() for text in uncached),
        cache=_cache(table, compile_step, main_file),
        run=_step(run, main_file, args=True),
        template=_template(table, main_file),
        limits=_limits(table.table("limits")),
        env=_environment(table, main_file),
        packages=table.texts("packages", _PACKAGE, []),
        requires=table.texts("requires", _REQUIREMENT),
        host_paths=_host_paths(table),
        version=None if version is None else _version(version, main_file),
        minimum_version=_minimum_version(table, probed=version is not None),
        examples=_examples(table.table("examples"), table),
        variant=variant,
    )
    table.close()
    return language


def _matching(table: _Table, key: str, shape: re.Pattern[str]) -> str:
    value = table.text(key)
    if not shape.fullmatch(value):
        raise table.error(key, f"{value!r} is not of the form {shape.pattern}")
    return value


def _files(table: _Table) -> dict[str, bytes]:
    return {_file_name(table, "files", path): text.encode() for path, text in table.mapping("files").items()}


def _cache(parent: _Table, compile_step: Step | None, main_file: str) -> Cache | None:
    table = parent.table("cache")
    if table is None:
        return None
    if compile_step is None:
        raise parent.error("cache", "needs a [compile] that it can stand in for")
    # Both run in the compile step's environment: what is made under another one would not fit.
    cache = Cache(
        fill=Step(argv=_words(table, "fill", main_file, ("cache",)), env=compile_step.env),
        files=_files(table),
        limits=_limits(table.table("limits")),
        compile=Step(argv=_words(table, "compile", main_file, ("cache",)), env=compile_step.env),
    )
    table.close()
    return cache


def _template(parent: _Table, main_file: str) -> Template | None:
    table = parent.table("template")
    if table is None:
        return None
    kinds = [kind.value for kind in TemplateKind]
    kind = table.text("kind")
    if kind not in kinds:
        raise table.error("kind", f"must be {' or '.join(map(repr, kinds))} (got {kind!r})")
    run = parent.table("run")
    if run is not None and "{args}" in run.texts("argv"):
        raise parent.error(
            "template", "needs a [run] to which arguments are added at the end: {args} in it prevents that"
        )
    if kind == TemplateKind.FORK:
        template = Template(kind=TemplateKind.FORK)
    else:
        template = Template(
            kind=TemplateKind.POOL, boot=_words(table, "boot", main_file), files=_absolute_files(table, "files")
        )
    table.close()
    return template


def _absolute_files(table: _Table, key: str) -> tuple[tuple[str, str], ...]:
    """Texts by path, taken as they are: a program's own braces are no placeholders."""
    texts = table.mapping(key)
    for path in texts:
        pure = PurePosixPath(path)
        if not pure.is_absolute() or ".." in pure.parts or str(pure) != path or len(pure.parts) < 3:
            raise table.error(key, f"must be absolute paths below a top-level directory (got {path!r})")
    return tuple(texts.items())


def _file_name(table: _Table, key: str, name: str) -> str:
    """*name*, when it is a relative path that stays below the working directory."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or str(path) != name or name == ".":
        raise table.error(key, f"must be a plain path below the working directory (got {name!r})")
    return name


def _host_paths(table: _Table) -> tuple[str, ...]:
    paths = table.texts("host_paths", None, [])
    for path in paths:
        pure = PurePosixPath(path)
        # A whole top-level directory would show far more than a runtime: /var, /home, /root, …
        if not pure.is_absolute() or ".." in pure.parts or str(pure) != path or len(pure.parts) < 3:
            raise table.error("host_paths", f"must be absolute and below a top-level directory (got {path!r})")
        if pure.parts[1] in ("proc", "sys", "dev", "run"):
            raise table.error("host_paths", f"the kernel's own file systems cannot be shown (got {path!r})")
    return paths


def _step(table: _Table, main_file: str, *, args: bool = False) -> Step:
    """The command in *table*; `{main}` is filled in at once, the limits only when it runs."""
    argv = _words(table, "argv", main_file, ("args",) if args else ())
    env = _environment(table, main_file)
    table.close()
    return Step(argv=argv, env=env)


def _words(table: _Table, key: str, main_file: str, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The command under *key*; *more* are the placeholders that it may hold beside the limits and `{main}`."""
    words = table.texts(key)
    if not words or not words[0]:
        raise table.error(key, "must hold a command")
    for word in words:
        if word == "{args}" and "args" not in more:
            raise table.error(key, "only the run step has the caller's arguments")
        if word != "{args}":
            _check_placeholders(table, key, word, more)
    return tuple(word.replace("{main}", main_file) for word in words)


def _environment(table: _Table, main_file: str) -> dict[str, str]:
    env = table.mapping("env")
    for name, value in env.items():
        if "=" in name:
            raise table.error(f"env.{name}", "a variable's name must not hold '='")
        _check_placeholders(table, f"env.{name}", value)
    return {name: value.replace("{main}", main_file) for name, value in env.items()}


def _check_placeholders(table: _Table, key: str, word: str, more: tuple[str, ...] = ()) -> None:
    for match in PLACEHOLDER.finditer(word):
        name, percent = match.groups()
        if (name == "main" or (name == "cache" and name in more)) and percent is None:
            continue
        if name == "args":
            raise table.error(key, "{args} must stand alone, in the argv of [run]")
        if name == "cache":
            raise table.error(key, "only the commands of [cache] know where the cache is")
        if name not in NUMBERS:
            known = ", ".join(("main", "args", "cache", *NUMBERS))
            raise table.error(key, f"unknown placeholder {match.group()!r}; known: {known}")
        if percent is not None and not 1 <= int(percent) <= 100:
            raise table.error(key, f"the share in {match.group()!r} must be 1% to 100%")


def _limits(table: _Table | None) -> LimitOverrides:
    if table is None:
        return LimitOverrides()
    given: dict[str, Any] = {}
    for key in table.names():
        if key not in _LIMITS:
            raise table.error(key, f"unknown limit; known: {', '.join(sorted(_LIMITS))}")
        name, unit = _LIMITS[key]
        value = table.number(key)
        if key not in _FRACTIONS and not isinstance(value, int):
            raise table.error(key, f"must be a whole number (got {value!r})")
        given[name] = value * unit
    return LimitOverrides(**given)


def _version(table: _Table, main_file: str) -> VersionProbe:
    pattern = table.text("pattern", "")
    try:
        compiled = re.compile(pattern) if pattern else None
    except re.error as error:
        raise table.error("pattern", f"not a regular expression: {error}") from None
    if compiled is not None and compiled.groups != 1:
        raise table.error("pattern", "must have one group, the version")
    return VersionProbe(step=_step(table, main_file), pattern=compiled)


def _minimum_version(table: _Table, *, probed: bool) -> tuple[int, ...] | None:
    text = table.text("minimum_version", "")
    if not text:
        return None
    if not re.fullmatch(r"\d+(\.\d+)*", text):
        raise table.error("minimum_version", f"must be numbers with points between them (got {text!r})")
    if not probed:
        raise table.error("minimum_version", "needs a [version] to compare with")
    return tuple(int(number) for number in text.split("."))


def _examples(table: _Table | None, parent: _Table) -> dict[str, Example]:
    found: dict[str, Example] = {}
    for name in () if table is None else table.names():
        assert table is not None
        own = table.table(name)
        assert own is not None
        found[name] = Example(
            code=own.text("code"),
            stdin=own.text("stdin", ""),
            args=own.texts("args", None, []),
            stdout=own.text("stdout", ""),
            exit_code=own.get("exit_code", int, 0),
            compiles=own.get("compiles", bool, True),
        )
        own.close()
    if "hello" not in found:
        raise parent.error("examples.hello", "is missing; it shows that the language works")
    return found
