"""What the query of a request says."""

import re

from starlette.requests import Request

from stockade.dialects.boxlite.wire import BadBody

__all__ = ["flag", "number"]


def number(request: Request, name: str, *, least: int, most: int) -> int | None:
    """A whole number; `None` where there is none.

    Raises:
        BadBody: it is none, or out of bounds.
    """
    text = request.query_params.get(name)
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text) or not least <= int(text) <= most:
        raise BadBody(f"{name}: must be a whole number from {least} to {most}")
    return int(text)


def flag(request: Request, name: str) -> bool:
    """Whether it is said; `true`, `1` or the name alone.

    Raises:
        BadBody: it is neither that nor `false` or `0`.
    """
    text = request.query_params.get(name, "false").lower()
    if text not in ("", "1", "true", "0", "false"):
        raise BadBody(f"{name}: must be true or false")
    return text in ("", "1", "true")
