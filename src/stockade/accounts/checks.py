"""What may be written into records of accounts and keys."""

import re
import zoneinfo
from datetime import datetime
from typing import Any

from stockade.errors import Invalid

__all__ = ["email", "limit", "moment", "text", "timezone", "uuid"]

LARGEST = 2**31 - 1
"""What a whole number in a row can hold."""
LONGEST_EMAIL = 254
_EMAIL = re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def text(name: str, value: Any, *, most: int, least: int = 0) -> str:
    """*value*, if it is text of such a length that a database can hold.

    Raises:
        Invalid: it is not; names the member.
    """
    if not isinstance(value, str) or not least <= len(value) <= most:
        raise Invalid(
            f"{name}: must be text of {least} to {most} characters" if least else f"{name}: at most {most} characters"
        )
    if "\0" in value or any("\ud800" <= one <= "\udfff" for one in value):
        raise Invalid(f"{name}: holds characters that are none")
    return value


def email(name: str, value: Any) -> str:
    """*value*, if it has the form of an address. Raises Invalid."""
    checked = text(name, value, least=1, most=LONGEST_EMAIL)
    if not _EMAIL.fullmatch(checked):
        raise Invalid(f"{name}: must be an e-mail address")
    return checked


def limit(name: str, value: Any, *, most: int | None = None) -> int:
    """*value*, if it is a number above 0, and not above *most*. Raises Invalid."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
        raise Invalid(f"{name}: must be a whole number of at least 1")
    if most is not None and value > most:
        raise Invalid(f"{name}: must not be above the account's own limit, {most}")
    return value


def moment(name: str, value: Any) -> datetime:
    """*value*, if it is a moment with a time zone. Raises Invalid."""
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise Invalid(f"{name}: must be a date and time with a time zone")
    return value


def timezone(name: str, value: Any) -> str:
    """*value*, if the IANA database has it. Raises Invalid."""
    if value not in zoneinfo.available_timezones() and value != "UTC":
        raise Invalid(f"{name}: must be the name of a time zone, like Europe/Vienna")
    return str(value)


def uuid(value: str) -> str:
    """*value* in lower case, if it is a UUID. Raises Invalid."""
    if not _UUID.fullmatch(value):
        raise Invalid(f"a key's id is a UUID (got {value[:64]!r})")
    return value.lower()
