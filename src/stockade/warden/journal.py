"""What the warden tells the operator: lines on standard error, which may be gone with whoever read them."""

import contextlib
import os
import time
import traceback

__all__ = ["say", "say_traceback"]


def say(text: str) -> None:
    """Write one line. That nobody can read it is no reason to fail."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with contextlib.suppress(OSError):
        os.write(2, f"{stamp} {text}\n".encode(errors="replace"))


def say_traceback() -> None:
    """Write the exception that is being handled."""
    say(traceback.format_exc().rstrip())
