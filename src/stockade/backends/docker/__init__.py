"""The docker backend: sandboxes from containers of a Docker engine, whose socket a gate of ours holds."""

from stockade.backends.base import Backend, BackendOptions, BackendPlugin

__all__ = ["backend"]


def _make(options: BackendOptions) -> Backend:
    # Not at import: the gate is of this package, and sees the standard library alone.
    from stockade.backends.docker.runner import DockerBackend

    return DockerBackend(options)


backend = BackendPlugin(name="docker", make=_make)
