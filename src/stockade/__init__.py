"""Stockade runs code that nobody vouches for, in a fresh Linux sandbox for every run."""

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    # Looked up only when asked for: the warden imports this package too, and must stay small.
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("stockade")
        except PackageNotFoundError:  # a source tree that is not installed
            return "0.1.0"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
