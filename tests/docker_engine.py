"""A Docker engine of the tests' own, and the docker backend on it."""

import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from stockade import registry
from stockade.backends.base import Backend, BackendOptions
from tests.deploy.engine import Engine, engine

__all__ = ["docker_backend", "docker_engine", "docker_options", "is_long", "socket_of"]

_NEEDED = {"dockerd": "docker.io", "docker": "docker.io", "unshare": "util-linux", "ip": "iproute2"}
is_long = os.environ.get("STOCKADE_LONG_TESTS") == "1"


@contextlib.contextmanager
def docker_engine(folder: Path, *, runsc: bool = False) -> Iterator[Engine]:
    """One with its data in *folder* and in namespaces of its own; the test is skipped where none can be had.

    Args:
        runsc: it is to know gVisor's runtime.
    """
    needed = _NEEDED | ({"runsc": "runsc"} if runsc else {})
    missing = sorted({package for program, package in needed.items() if shutil.which(program) is None})
    if os.geteuid() != 0 or missing:
        pytest.skip(f"a Docker engine of our own takes root and the packages {', '.join(missing) or 'docker.io'}")
    # Any platform works with ptrace; a container has no network to be set up.
    gvisor = {"path": shutil.which("runsc"), "runtimeArgs": ["--network=none", "--platform=ptrace"]}
    with engine(folder, has_network=False, settings={"runtimes": {"runsc": gvisor}} if runsc else None) as one:
        yield one


def socket_of(one: Engine) -> Path:
    return Path(one.address.removeprefix("unix://"))


def docker_options(one: Engine, data_dir: Path, **more: Any) -> BackendOptions:
    return BackendOptions(data_dir=data_dir, docker_socket=socket_of(one), **more)


@contextlib.asynccontextmanager
async def docker_backend(one: Engine, data_dir: Path, **options: Any) -> AsyncIterator[Backend]:
    """A started one."""
    backend: Backend = registry.find("backends", "docker").make(docker_options(one, data_dir, **options))
    try:
        await backend.start()
        yield backend
    finally:
        await backend.close()
