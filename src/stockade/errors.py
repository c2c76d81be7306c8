"""Everything Stockade can refuse or fail at, in one tree.

    StockadeError
    ├── Invalid          the request is wrong; changing it helps, repeating it does not
    │   ├── ConfigError  (stockade.settings) a setting is wrong; names where it was found
    │   ├── InvalidLimit
    │   ├── UnknownLanguage
    │   └── UnknownImage
    ├── Denied           the caller may not do this
    ├── NotFound
    ├── Conflict         the thing is in a state that does not allow it
    ├── LimitExceeded    the caller used up a quota or a rate; later it may work
    ├── Unsupported      this host or this configuration cannot do it
    │   ├── LanguageUnavailable
    │   └── CannotEnforce
    ├── Unavailable      nothing is wrong with the request; retry
    │   ├── QueueFull
    │   └── BackendLost
    └── Fault            a bug or a broken host

What becomes of a tenant's program (exit status, time-out, out of memory) is never an error:
it is an `Outcome` (`stockade.model`). A dialect maps the eight kinds to its own statuses.
"""

from collections.abc import Iterable

__all__ = [
    "BackendLost",
    "CannotEnforce",
    "Conflict",
    "Denied",
    "Fault",
    "Invalid",
    "InvalidLimit",
    "LanguageUnavailable",
    "LimitExceeded",
    "NoAnswer",
    "NotFound",
    "QueueFull",
    "StockadeError",
    "Unavailable",
    "UnknownImage",
    "UnknownLanguage",
    "Unsupported",
]


class StockadeError(Exception):
    """Base of all errors; `code` is stable, clients may match on it."""

    code = "error"


class Invalid(StockadeError):
    """The request is wrong."""

    code = "invalid"


class Denied(StockadeError):
    """The caller may not do this."""

    code = "denied"


class NotFound(StockadeError):
    """There is no such thing, or it is not the caller's."""

    code = "not_found"


class Conflict(StockadeError):
    """The thing is in a state that does not allow the operation."""

    code = "conflict"


class LimitExceeded(StockadeError):
    """The caller used up a quota or a rate."""

    code = "limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class Unsupported(StockadeError):
    """This host or this configuration cannot do it."""

    code = "unsupported"


class Unavailable(StockadeError):
    """Nothing is wrong with the request; it is safe to retry."""

    code = "unavailable"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class NoAnswer(Unavailable):
    """Nobody answered in time. Whether what was asked for has been done is not known; if not, it may yet be."""

    code = "no_answer"


class Fault(StockadeError):
    """A bug of ours, or a host that is broken."""

    code = "fault"


class UnknownLanguage(Invalid):
    """No language has this name or alias."""

    code = "language.unknown"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(sorted(known))
        super().__init__(f"unknown language {name!r}; known: {', '.join(self.known)}")


class UnknownImage(Invalid):
    """No image has this name."""

    code = "image.unknown"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(sorted(known))
        super().__init__(f"unknown image {name!r}; known: {', '.join(self.known)}")


class InvalidLimit(Invalid):
    """A limit is zero, negative, not a number, or above what this server allows."""

    code = "limit.invalid"

    def __init__(self, name: str, value: object, reason: str, *, maximum: float | None = None) -> None:
        self.name = name
        self.value = value
        self.maximum = maximum
        super().__init__(f"{name}: {reason} (got {value!r})")


class LanguageUnavailable(Unsupported):
    """The language is known, but its runtime is not installed here."""

    code = "language.unavailable"

    def __init__(self, name: str, packages: Iterable[str]) -> None:
        self.name = name
        self.packages = tuple(packages)
        hint = f"; install it with: apt-get install {' '.join(self.packages)}" if self.packages else ""
        super().__init__(f"the runtime of {name!r} is not installed on this host{hint}")


class CannotEnforce(Unsupported):
    """This host cannot enforce a limit that was asked for, and the operator has not allowed to go without."""

    code = "limit.cannot_enforce"

    def __init__(self, features: Iterable[str]) -> None:
        self.features = tuple(features)
        names = ", ".join(self.features)
        super().__init__(
            f"this host cannot enforce: {names}. `stockade doctor` says how to mend it; to go without, "
            f"list them in sandbox.allow_unenforced"
        )


class QueueFull(Unavailable):
    """All places are taken and the queue is full."""

    code = "queue.full"


class BackendLost(Unavailable):
    """The warden went away in the middle of the operation; its sandboxes are gone with it."""

    code = "backend.lost"
