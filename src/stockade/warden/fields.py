"""Checks of members of messages, for those who do not trust the sender."""

import fcntl
import os
import stat
from collections.abc import Mapping
from typing import Any

__all__ = [
    "Refused",
    "command",
    "directory",
    "is_file",
    "is_text",
    "number",
    "request_name",
    "said",
    "texts",
    "variables",
    "whole",
]

_LONGEST_NAME = 64
_NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class Refused(Exception):
    """The request cannot be carried out; `kind` is one of the error kinds of `stockade.errors`, in small letters."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


def is_text(value: object) -> bool:
    """Whether the kernel can be given it."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        return value.isascii() or bool(value.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:  # a lone surrogate, which JSON can write
        return False


def variables(source: Mapping[str, Any], name: str) -> dict[str, str]:
    value = source.get(name)
    if not isinstance(value, dict) or not all(
        k and is_text(k) and "=" not in k and is_text(v) for k, v in value.items()
    ):
        raise Refused("invalid", f"{name}: must map names to strings without NUL")
    return value


def texts(source: Mapping[str, Any], name: str, *, most: int = 1 << 20) -> tuple[str, ...]:
    value = source.get(name, [])
    if not isinstance(value, list) or not all(is_text(v) for v in value) or len(value) > most:
        raise Refused("invalid", f"{name}: must be a list of at most {most} strings without NUL")
    return tuple(value)


def command(source: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = texts(source, name)
    if not value or not value[0]:
        raise Refused("invalid", f"{name}: must be a list of strings without NUL, the first not empty")
    return value


def directory(source: Mapping[str, Any], name: str) -> str:
    value = source.get(name)
    if not isinstance(value, str) or not is_text(value) or not value.startswith("/") or ".." in value.split("/"):
        raise Refused("invalid", f"{name}: must be an absolute path")
    return value


def number(source: Mapping[str, Any], name: str, most: float) -> float:
    value = source.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:  # NaN fails too
        raise Refused("invalid", f"{name}: must be a number above 0 and at most {most:g}, not {value!r}")
    return float(value)


def request_name(source: Mapping[str, Any]) -> str:
    """By which name the client knows the request that this is part of: for our log, which nothing else may enter."""
    value = source.get("request")
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME or not _NAME_LETTERS.issuperset(value):
        return "-"
    return value


def is_file(fd: int) -> bool:
    """Whether a descriptor that was passed is a regular file that its sender could open: O_PATH asks for no right."""
    return stat.S_ISREG(os.fstat(fd).st_mode) and not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH


def said(value: object, most: int) -> str:
    """What somebody who may be lying says, in at most *most* characters: it can be logged, and sent on, as it is."""
    if not isinstance(value, str | int | float):  # what is deep enough cannot even be shown
        return f"(a {type(value).__name__})"
    return str(value)[:most].encode(errors="backslashreplace").decode()[:most]


def whole(source: Mapping[str, Any], name: str, most: int, *, least: int = 1) -> int:
    value = source.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Refused("invalid", f"{name}: must be a whole number from {least} to {most}, not {value!r}")
    return value
