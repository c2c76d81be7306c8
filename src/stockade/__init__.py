"""Stockade runs code that nobody vouches for, in a fresh Linux sandbox for every run.

from stockade import Sandbox

with Sandbox() as box:
    print(box.run("print(6 * 7)").stdout)
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stockade.embedded import AsyncSandbox, ProgramFailed, Result, Sandbox

    __version__: str

__all__ = ["AsyncSandbox", "ProgramFailed", "Result", "Sandbox", "__version__"]


def __getattr__(name: str) -> object:
    # Looked up only when asked for: the warden imports this package too, and must stay small.
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("stockade")
        except PackageNotFoundError:  # a source tree that is not installed
            return "0.1.0"
    if name in __all__:
        from stockade import embedded

        return getattr(embedded, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
