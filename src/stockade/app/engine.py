"""An engine from the configuration."""

import asyncio
import contextlib
import os
import resource
import stat
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any

from stockade import registry
from stockade.app.caches import SHOWN_AT, DirectoryStore, cache_directory, prepare_cache_directory
from stockade.backends.base import Backend, BackendOptions
from stockade.backends.choice import Choice
from stockade.config import Config
from stockade.engine import Compilations, Engine, Languages, LimitPolicy, Queue, Runs, Templates, Toolchains
from stockade.engine.backend_policy import BackendPolicy
from stockade.engine.runs import WORK_DIR
from stockade.errors import Unavailable

__all__ = ["backend_options", "build_engine", "load_languages", "make_backend", "prepare_data_dir"]

MOST_COMPILATIONS = 4096
"""Compilations kept at most."""


def load_languages(config: Config) -> Languages:
    """The languages of the package and those of the operator's directory.

    Raises:
        Invalid: a language file is wrong; the message names file and key.
    """
    directory = config.sandbox.languages_dir
    return Languages.load([directory] if directory is not None else [], host_paths=config.sandbox.host_paths)


def make_backend(
    config: Config,
    languages: Languages,
    *,
    embedded: bool = False,
    warden_socket: Path | None = None,
    instance: str = "",
) -> Backend:
    """The configured backend, not started; where there are several, one that chooses among them.

    Raises:
        Invalid: there is no such backend.
    """
    options = backend_options(config, languages, embedded=embedded, warden_socket=warden_socket, instance=instance)
    names = dict.fromkeys((config.sandbox.backend, *config.sandbox.backends))
    backends: dict[str, Backend] = {name: registry.find("backends", name).make(options) for name in names}
    return Choice(backends) if len(backends) > 1 else backends[config.sandbox.backend]


def _backend_policy(config: Config, backend: Backend) -> BackendPolicy:
    """Which backends requests may name."""
    usual = config.sandbox.backend
    return BackendPolicy(
        usual=usual,
        offered=tuple(dict.fromkeys((usual, *config.sandbox.backends))),
        with_disks=(backend.with_disks or usual) if isinstance(backend, Choice) else usual,
    )


def backend_options(
    config: Config,
    languages: Languages,
    *,
    embedded: bool = False,
    warden_socket: Path | None = None,
    instance: str = "",
) -> BackendOptions:
    """What the backend is told.

    The operator's directories are passed on as they are, so that a wrong one is reported. Those that languages read
    are there only where the language is installed. Where the configuration names a warden, that one is used, whatever
    the caller would have started. The directory of toolchains' caches is made where it is missing, since a warden shows
    what is there when it starts.
    """
    prepare_cache_directory(config)
    caches = cache_directory(config)
    named = config.sandbox.warden_socket
    installed = [path for path in languages.host_paths() if Path(path).is_dir()]
    return BackendOptions(
        data_dir=config.data_dir,
        host_paths=tuple(
            dict.fromkeys((*config.sandbox.host_paths, *installed, *([f"{caches}:{SHOWN_AT}"] if caches else [])))
        ),
        allow_unenforced=config.sandbox.allow_unenforced,
        warden_socket=named or warden_socket,
        embedded=embedded and named is None,
        instance=instance,
        disks=config.disks.kind,
        disks_bytes=config.disks.size_bytes,
        docker_socket=config.docker.socket,
        docker_gate=config.docker.gate,
        docker_image=config.docker.image,
        docker_runtime=config.docker.runtime,
        docker_spares=0 if embedded else config.docker.spares,
        permit_private=config.network.permit_private,
        refuse=config.network.refuse,
    )


@contextlib.asynccontextmanager
async def build_engine(
    config: Config, *, embedded: bool = False, warden_socket: Path | None = None, instance: str = ""
) -> AsyncIterator[Engine]:
    """A started engine; at the end of the block everything that runs is killed and the backend is closed.

    Args:
        embedded: the warden belongs to this process alone and ends with it, unless the configuration names one.
        warden_socket: where a warden listens that is ours but no child of the backend's.

    Raises:
        CannotEnforce, Unavailable: the backend does not start; see `Backend.start`.
        Invalid: see `load_languages` and `make_backend`.
    """
    languages = load_languages(config)
    limits = LimitPolicy(defaults=config.sandbox.defaults, maximum=config.sandbox.maximum)
    queue = Queue(
        places=config.queue.places,
        length=config.queue.length,
        wait_s=config.queue.wait_s,
        places_per_actor=config.queue.places_per_actor,
        overload_wait_s=config.queue.overload_wait_s,
    )
    backend = make_backend(config, languages, embedded=embedded, warden_socket=warden_socket, instance=instance)
    directory = cache_directory(config)
    store = None if directory is None else DirectoryStore(directory)
    if store is not None and not embedded:
        store.clear_unused()
    toolchains = Toolchains(
        store=store,
        limits=limits,
        run=backend.run,
        work_dir=WORK_DIR,
    )
    # Who runs one program and ends would have an interpreter started, and never use it.
    templates = Templates(languages, config.templates, enabled=config.sandbox.templates and not embedded)
    compilations = _compilations(config)
    try:
        await backend.start()
        runs = Runs(
            languages=languages,
            limits=limits,
            queue=queue,
            backend=backend,
            compilations=compilations,
            toolchains=toolchains,
            templates=templates,
            backends=_backend_policy(config, backend),
        )
        # Who runs one program and ends would only throw away what it began.
        async with _background([] if embedded else [toolchains.keep_filled(), runs.announce()]):
            yield Engine(
                languages=languages,
                runs=runs,
                queue=queue,
                limits=limits,
                compilations=compilations,
                toolchains=toolchains,
                backend=backend,
            )
    finally:
        compilations.close()
        await backend.close()


@contextlib.asynccontextmanager
async def _background(work: Sequence[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Do *work* during the block, as far as it gets."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _compilations(config: Config) -> Compilations:
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Compilations(
        most_bytes=config.cache.compilations_bytes,
        # Each holds a descriptor: leave most of them to connections and runs.
        most_entries=min(MOST_COMPILATIONS, descriptors // 4),
        shared=config.cache.compilations_shared,
    )


def prepare_data_dir(path: Path, *, passable: bool = False) -> None:
    """Make the data directory (mode 0700) when it is missing.

    Args:
        passable: others may pass through it, not list it: a server that runs as another user than the data directory's
            reaches the warden's socket in it.

    Raises:
        Unavailable: it cannot be made or written to, or belongs to another user.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise Unavailable(
            f"data directory {path}: {error.strerror}; name another one with --data-dir or STOCKADE_DATA_DIR"
        ) from error
    if status.st_mode & stat.S_ISVTX:
        # Its rights are about to be narrowed, and what else lies there is in everybody's reach.
        raise Unavailable(f"data directory {path} is shared with others (sticky, as /tmp is); use one below it")
    if status.st_uid != os.geteuid():
        raise Unavailable(
            f"data directory {path} belongs to user {status.st_uid}, not to {os.geteuid()}; use another one"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        path.chmod(0o700)  # it holds the keys' hashes and the warden's socket
    if passable:
        path.chmod(0o711)
