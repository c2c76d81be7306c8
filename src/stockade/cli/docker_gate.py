"""`stockade docker-gate`: the part of the docker backend that may talk to Docker, for servers that may not."""

import os
from pathlib import Path
from typing import Annotated

import typer

from stockade.cli.options import ConfigFile
from stockade.errors import Unavailable

__all__ = ["docker_gate"]


def docker_gate(
    listen: Annotated[Path, typer.Option(metavar="PATH", help="UNIX socket to make.")],
    allow_uid: Annotated[
        list[int] | None,
        typer.Option(
            min=0, metavar="UID", help="User that may use it, beside root. May be repeated.", show_default=False
        ),
    ] = None,
    allow_user: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="The same, by name. May be repeated.", show_default=False)
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Run a gate to the Docker engine by itself, until SIGTERM; prints nothing but errors.

    Whoever may talk to Docker's socket is root. Start this as somebody who may, and the server as somebody who may not,
    with PATH as `docker.gate`: through it the server can have programs run in containers of one kind, and nothing else.
    Of the configuration it reads `docker`, `sandbox.host_paths`, the languages and `data_dir`.
    """
    from stockade.app.engine import backend_options, load_languages
    from stockade.backends.docker.launch import command
    from stockade.cli.warden import _checked, _users
    from stockade.config import load

    loaded = load(file=config)
    uids = _users(allow_uid or [], allow_user or [])
    path = _checked(listen)
    words = command(backend_options(loaded, load_languages(loaded)))
    words += ["--listen", str(path), *(word for uid in uids for word in ("--allow-uid", str(uid)))]
    os.chdir("/")
    try:
        # We become the gate: a supervisor's signals and limits meet the process that they are for. No environment, for
        # a process's own stays readable in /proc for as long as it lives.
        os.execve(words[0], words, {})
    except OSError as error:
        raise Unavailable(f"cannot start the gate: {words[0]}: {error.strerror}") from error
