"""What a registry asks for before it answers: the header `WWW-Authenticate` (RFC 9110, 11.6.1), and tokens."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.request import parse_http_list

__all__ = ["Challenge", "Token", "challenges", "token"]

_BEGIN = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:[ \t]+(.*))?", re.DOTALL)
_PARAMETER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*(.*)", re.DOTALL)
MOST_CHARACTERS = 8192
SHORTEST_LIFE_S = 60.0
"""Of a token that does not say how long it lives: what the protocol promises."""
LONGEST_LIFE_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """One way of proving who asks."""

    scheme: str
    """In lower case: `bearer`, `basic`."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """By names in lower case."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """What a token service gave."""

    text: str = field(repr=False)
    life_s: float


def challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """The challenges in the values of all `WWW-Authenticate` headers of an answer; what makes no sense is left out."""
    found: list[tuple[str, dict[str, str]]] = []
    for part in parse_http_list(", ".join(headers)[:MOST_CHARACTERS]):
        if (parameter := _PARAMETER.fullmatch(part)) is not None:
            if found:
                found[-1][1].setdefault(parameter[1].lower(), _unquoted(parameter[2]))
        elif (begin := _BEGIN.fullmatch(part)) is not None:
            found.append((begin[1].lower(), {}))
            if begin[2] and (parameter := _PARAMETER.fullmatch(begin[2])) is not None:
                found[-1][1][parameter[1].lower()] = _unquoted(parameter[2])
    return tuple(Challenge(scheme=scheme, parameters=parameters) for scheme, parameters in found)


def _unquoted(text: str) -> str:
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
    return text


def token(body: bytes) -> Token | None:
    """The token in a token service's answer; `None` when there is none that could stand in a header."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    text = document.get("token") or document.get("access_token")
    if not isinstance(text, str) or not re.fullmatch(r"[!-~]{1,65536}", text):
        return None
    life = document.get("expires_in")
    if not isinstance(life, (int, float)) or isinstance(life, bool):
        life = SHORTEST_LIFE_S
    return Token(text=text, life_s=min(max(life, 0.0), LONGEST_LIFE_S))
