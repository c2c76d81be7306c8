"""`stockade run`: one program in a fresh sandbox, without a server."""

import asyncio
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stockade.cli.failures import complain
from stockade.cli.options import AsJson, ConfigFile, DataDir
from stockade.errors import Invalid, LanguageUnavailable, StockadeError
from stockade.model import Actor, LimitOverrides, Outcome, ProcessResult, RunResult, RunSpec

if TYPE_CHECKING:
    from stockade.config import Config
    from stockade.engine import Engine

__all__ = ["exit_status", "run", "to_json"]

OUR_FAILURE = 125
"""Exit status when the sandbox, not the program, failed: as `docker run` and `timeout` have it."""

LIMITS = {  # exit status, and what to tell; {} takes the limit
    Outcome.WALL_TIME: (124, "stopped at its wall-clock limit ({wall_s:g} s; --timeout)"),
    Outcome.CPU_TIME: (124, "stopped at its CPU-time limit ({cpu_s:g} s; --timeout)"),
    Outcome.MEMORY: (137, "stopped at its memory limit ({memory_mib:g} MiB; --memory)"),
    Outcome.OUTPUT: (137, "stopped at its output limit ({output_mib:g} MiB of a stream)"),
    Outcome.PROCESSES: (None, "failed at its limit of processes and threads ({processes})"),
    Outcome.DISK: (None, "failed at its disk limit ({disk_mib:g} MiB, {disk_inodes} files)"),
    Outcome.CANCELLED: (130, "was cancelled"),
    Outcome.LOST: (OUR_FAILURE, "was lost: the warden ended"),
}


def run(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="Program to run; `-` reads it from standard input.")
    ] = None,
    args: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGS...]", help="Arguments for the program.", show_default=False)
    ] = None,
    code: Annotated[
        str | None, typer.Option("--code", "-c", metavar="CODE", help="Run this text instead of a file.")
    ] = None,
    language: Annotated[
        str | None,
        typer.Option("--language", "-l", metavar="NAME", help="Language; guessed from the extension. With -c: python."),
    ] = None,
    stdin: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Standard input of the program; `-` passes ours on. Default: empty."),
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="DURATION", help='Wall-clock limit: "2", "500ms", "1m".')
    ] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help='Memory limit: "64MiB", "1G".')] = None,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Template of the configuration, as a request names it: its image counts. Nothing is kept warm for one "
            "run, so it saves no time here.",
        ),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where the sandbox comes from; default: as configured.")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Run one program in a fresh sandbox; needs no server.

    The exit status is the program's. At a limit it is 124 (time) or 137 (memory, output) and a line on standard error
    says which; 128 + n after signal n; 125 when the sandbox itself failed.
    """
    from stockade.config import load

    try:
        loaded = load(file=config, options={"data_dir": data_dir, "sandbox.backend": backend})
        spec_args = tuple(args or ())
        if code is not None:  # like `python -c`: what would be the file is the first argument
            spec_args = ((file,) if file is not None else ()) + spec_args
        overrides = _overrides(loaded, timeout, memory)
        source = _source(file, code, stdin)
        asked = RunSpec(
            language=language or "",
            code=source,
            stdin=_stdin(stdin),
            args=spec_args,
            template=template,
            limits=overrides,
        )
        status = _with_signals(_run(loaded, None if code is not None else file, asked, as_json))
    except StockadeError as error:
        complain(error)
        status = 2 if isinstance(error, Invalid) else OUR_FAILURE
    raise typer.Exit(status)


def _overrides(config: "Config", timeout: str | None, memory: str | None) -> LimitOverrides:
    from stockade.settings import parse_duration, parse_size

    wall_s = cpu_s = memory_bytes = None
    try:
        if timeout is not None:
            option = "--timeout"
            wall_s = parse_duration(timeout)
            # Whoever gives a program a minute means that it may also compute for a minute. The margin lets the
            # limit that was asked for be the one that strikes.
            cpu_s = min(max(wall_s * config.sandbox.defaults.cpus + 1, 1), config.sandbox.maximum.cpu_s)
        if memory is not None:
            option = "--memory"
            memory_bytes = parse_size(memory)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
    return LimitOverrides(wall_s=wall_s, cpu_s=cpu_s, memory_bytes=memory_bytes)


def _source(file: str | None, code: str | None, stdin: str | None) -> str:
    if code is not None:
        return code
    if file is None:
        raise typer.BadParameter("name a FILE, or give a program with -c CODE")
    try:
        if file == "-":
            if stdin == "-":
                raise typer.BadParameter("standard input cannot be both the program and its input")
            return sys.stdin.buffer.read().decode()
        return Path(file).read_bytes().decode()
    except OSError as error:
        raise Invalid(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Invalid(f"{file}: is not UTF-8 text") from None


def _stdin(text: str | None) -> bytes:
    if text == "-":
        return sys.stdin.buffer.read()
    return (text or "").encode(errors="surrogateescape")


def _with_signals(work: Any) -> int:
    """Run *work*; SIGINT and SIGTERM cancel it, so that its sandbox is gone when we are."""

    async def supervised() -> int:
        task = asyncio.current_task()
        assert task is not None
        got: list[int] = []

        def cancel(number: int) -> None:
            got.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, cancel, number)
        try:
            status: int = await work
        except asyncio.CancelledError:
            if not got:
                raise
            return 128 + got[0]
        return status

    return asyncio.run(supervised())


async def _run(config: "Config", file: str | None, spec: RunSpec, as_json: bool) -> int:
    """Run *spec*; where it names no language, that of *file* or of the option's default.

    Args:
        file: what the program was read from, `None` for an option.
    """
    from stockade.app.engine import build_engine, prepare_data_dir

    prepare_data_dir(config.data_dir)
    async with build_engine(config, embedded=True) as engine:
        if not spec.language:
            spec = replace(spec, language="python" if file is None else _guess(engine, file))
        try:
            limits = engine.runs.check(spec)
        except LanguageUnavailable:
            # A runtime that must have some minimum version counts only once it has been asked for it.
            await engine.languages.versions(engine.runs.backend.run, engine.limits)
            limits = engine.runs.check(spec)
        result = await engine.runs.run(Actor(id="cli"), spec)
    status = exit_status(result)
    if as_json:
        print(json.dumps(to_json(result) | {"exit_status": status}))
        return status
    sys.stdout.buffer.write(result.last.stdout if result.process else b"")
    sys.stdout.flush()
    # A compiler's messages are not the program's output, whichever stream it uses.
    sys.stderr.buffer.write(result.last.stderr if result.process else result.last.stdout + result.last.stderr)
    sys.stderr.flush()
    if result.last.outcome in LIMITS:
        subject = "the program" if result.process else "the compiler"
        told = LIMITS[result.last.outcome][1].format(
            **vars(limits),
            memory_mib=limits.memory_bytes / 1024**2,
            output_mib=limits.output_bytes / 1024**2,
            disk_mib=limits.disk_bytes / 1024**2,
        )
        print(f"stockade: {subject} {told}", file=sys.stderr)
    return status


def _guess(engine: "Engine", file: str) -> str:
    if file == "-":
        raise Invalid("a program from standard input has no extension; name its --language")
    return engine.languages.guess(file).name


def exit_status(result: RunResult) -> int:
    """Our exit status for what came of a run."""
    last = result.last
    fixed = LIMITS.get(last.outcome, (None, ""))[0]
    if fixed is not None:
        return fixed
    if last.exit_code is not None:
        return last.exit_code
    return 128 + last.signal if last.signal is not None else OUR_FAILURE


def to_json(result: RunResult) -> dict[str, object]:
    """The result as `--json` prints it; output that is not UTF-8 has replacement characters."""
    return {
        "language": result.language,
        "queued_s": result.queued_s,
        "compilation": _process(result.compilation),
        "process": _process(result.process),
    }


def _process(result: ProcessResult | None) -> dict[str, object] | None:
    if result is None:
        return None
    return {
        "outcome": result.outcome.value,
        "exit_code": result.exit_code,
        "signal": result.signal,
        "stdout": result.stdout.decode(errors="replace"),
        "stderr": result.stderr.decode(errors="replace"),
        "stdout_truncated": result.stdout_truncated,
        "stderr_truncated": result.stderr_truncated,
        "wall_s": result.usage.wall_s,
        "cpu_user_s": result.usage.cpu_user_s,
        "cpu_system_s": result.usage.cpu_system_s,
        "memory_peak_bytes": result.usage.memory_peak_bytes,
    }
