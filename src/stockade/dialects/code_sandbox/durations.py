"""Durations as Go writes and reads them (`time.ParseDuration`, `Duration.String`), in whole nanoseconds."""

__all__ = ["LONGEST_NS", "SECOND_NS", "BadDuration", "format_ns", "parse_ns"]

SECOND_NS = 1_000_000_000
LONGEST_NS = 2**63 - 1

_MICROSECOND_NS = 1000
_MILLISECOND_NS = 1000 * _MICROSECOND_NS
_MINUTE_S = 60
_HOUR_S = 3600
_UNITS = {
    "ns": 1,
    "us": _MICROSECOND_NS,
    "\u00b5s": _MICROSECOND_NS,  # micro sign
    "\u03bcs": _MICROSECOND_NS,  # Greek mu
    "ms": _MILLISECOND_NS,
    "s": SECOND_NS,
    "m": _MINUTE_S * SECOND_NS,
    "h": _HOUR_S * SECOND_NS,
}
_MOST = 2**63
"""Go adds up in 64 bits without a sign, and allows this much until the sign is known."""
_DIGITS = frozenset("0123456789")


class BadDuration(ValueError):
    """The text is no duration."""


def parse_ns(text: str) -> int:
    """Nanoseconds in a text like "1h30m", "-1.5s", ".5s" or "0".

    Raises:
        BadDuration: it is something else, or longer than 64 bits can say.
    """
    rest = text[1:] if text[:1] in ("+", "-") else text
    if rest == "0":
        return 0
    if not rest:
        raise BadDuration(f"invalid duration {text!r}")
    total = 0
    while rest:
        whole, rest = _digits(rest)
        fraction = ""
        if rest.startswith("."):
            fraction, rest = _digits(rest[1:])
        if not whole and not fraction:
            raise BadDuration(f"invalid duration {text!r}")
        unit, rest = _unit(rest)
        if unit not in _UNITS:
            raise BadDuration(f"unknown unit {unit!r} in duration {text!r}" if unit else f"missing unit in {text!r}")
        total += _term(whole, fraction, _UNITS[unit])
        if total > _MOST:
            raise BadDuration(f"invalid duration {text!r}")
    if text.startswith("-"):
        return -total
    if total > LONGEST_NS:
        raise BadDuration(f"invalid duration {text!r}")
    return total


def format_ns(duration_ns: int) -> str:
    """*duration_ns* as Go prints it: "0s", "1.5µs", "1m30s", "1h0m0s"."""
    if duration_ns == 0:
        return "0s"
    sign, size = ("-", -duration_ns) if duration_ns < 0 else ("", duration_ns)
    if size < _MICROSECOND_NS:
        return f"{sign}{size}ns"
    if size < _MILLISECOND_NS:
        return f"{sign}{_decimal(size, _MICROSECOND_NS)}µs"
    if size < SECOND_NS:
        return f"{sign}{_decimal(size, _MILLISECOND_NS)}ms"
    minutes, rest = divmod(size, _MINUTE_S * SECOND_NS)
    seconds = f"{_decimal(rest, SECOND_NS)}s"
    if not minutes:
        return sign + seconds
    hours, minutes = divmod(minutes, 60)
    return f"{sign}{hours}h{minutes}m{seconds}" if hours else f"{sign}{minutes}m{seconds}"


def _digits(text: str) -> tuple[str, str]:
    """The ASCII digits at the beginning, and what follows."""
    end = 0
    while end < len(text) and text[end] in _DIGITS:
        end += 1
    return text[:end], text[end:]


def _unit(text: str) -> tuple[str, str]:
    """All up to the next number, and what follows."""
    end = 0
    while end < len(text) and text[end] != "." and text[end] not in _DIGITS:
        end += 1
    return text[:end], text[end:]


def _term(whole: str, fraction: str, unit_ns: int) -> int:
    """Nanoseconds of one number and its unit; parts of a nanosecond are cut off."""
    digits = whole.lstrip("0")
    if len(digits) > len(str(_MOST)):  # so that the conversion stays cheap, however much there is
        raise BadDuration("the duration is too long")
    total = int(digits or "0") * unit_ns
    value, scale = _fraction(fraction)
    # Go does this in floating point, too: equal to the last nanosecond is what counts here.
    total += int(float(value) * (float(unit_ns) / scale))
    if total > _MOST:
        raise BadDuration("the duration is too long")
    return total


def _fraction(digits: str) -> tuple[int, float]:
    """The fraction as a whole number and what to divide it by; digits beyond 64 bits do not count."""
    value, scale = 0, 1.0
    for digit in digits:
        if value > LONGEST_NS // 10:
            break
        longer = value * 10 + int(digit)
        if longer > _MOST:
            break
        value = longer
        scale *= 10
    return value, scale


def _decimal(value: int, unit: int) -> str:
    """*value* in *unit*s, without trailing zeros."""
    whole, rest = divmod(value, unit)
    if not rest:
        return str(whole)
    return f"{whole}.{str(rest).rjust(len(str(unit)) - 1, '0').rstrip('0')}"
