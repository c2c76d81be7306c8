"""One build: what it is called, its steps in a sandbox of its own, and what they print."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from stockade.backends.sandboxing import LiveExec, ProcessEnd, Sandboxing
from stockade.engine.digests import digest
from stockade.engine.images import Image
from stockade.engine.sandbox_requests import checked_path
from stockade.errors import Conflict, Denied, Invalid, LimitExceeded, NotFound
from stockade.model import BuildFile, BuildSpec, Outcome

__all__ = ["BuildFailed", "BuildLog", "Steps", "checked_build", "layer_digest"]

MOST_STEPS = 100
MOST_FILES = 1000
MOST_FILE_BYTES = 64 << 20
"""All files of a build together."""
LOG_BYTES = 1 << 20
"""Kept of what a build's commands print; the oldest is dropped."""
TAIL_BYTES = 1024
"""Of that, the end that an error tells."""

_CHUNK = 1 << 18
_REASONS = {
    Outcome.WALL_TIME: "the build ran out of time",
    Outcome.CPU_TIME: "the build ran out of CPU time",
    Outcome.MEMORY: "the build ran out of memory",
    Outcome.PROCESSES: "the build may not have so many processes",
    Outcome.DISK: "the build may not write so much",
}


class BuildFailed(Invalid):
    """The commands or files of a build did not do what they should; `log` is the end of what they printed."""

    code = "build.failed"

    def __init__(self, reason: str, log: str) -> None:
        self.reason = reason
        self.log = log
        super().__init__(f"{reason}; the end of the build's log:\n{log}" if log else reason)


def checked_build(spec: BuildSpec, *, base: str) -> BuildSpec:
    """*spec* with absolute paths, its files sorted by them.

    Args:
        base: the directory that relative paths begin from.

    Raises:
        Invalid: a command or path holds a NUL character, two files have one path, or there is too much of something.
    """
    if len(spec.setup) > MOST_STEPS:
        raise Invalid(f"setup: {len(spec.setup)} commands; {MOST_STEPS} is the most")
    for number, command in enumerate(spec.setup):
        if "\0" in command or not command.strip():
            raise Invalid(f"setup[{number}]: is empty, or holds a NUL character")
    if len(spec.files) > MOST_FILES:
        raise Invalid(f"files: {len(spec.files)} files; {MOST_FILES} is the most")
    if (size := sum(len(file.content) for file in spec.files)) > MOST_FILE_BYTES:
        raise Invalid(f"files: {size} bytes; {MOST_FILE_BYTES} is the most for all together")
    files: dict[str, BuildFile] = {}
    for number, file in enumerate(spec.files):
        path = checked_path(file.path, what=f"files[{number}].path", base=base)
        if path in files or path == "/":
            raise Invalid(f"files[{number}].path: {file.path!r} is there twice, or is no file")
        files[path] = replace(file, path=path, mode=file.mode & 0o777)
    return BuildSpec(setup=spec.setup, files=tuple(files[path] for path in sorted(files)))


def layer_digest(base: str, spec: BuildSpec, *, scope: str) -> str:
    """The name of all that a layer depends on.

    Args:
        base: digest of the image under it.
        spec: as `checked_build` returns it.
        scope: whom it is for; empty for everybody.
    """
    # A count before each list: else a command could pass for a file.
    members: list[str | bytes] = [base, scope, str(len(spec.setup)), *spec.setup, str(len(spec.files))]
    for file in spec.files:
        members += [file.path, f"{file.mode:o}", file.content]
    return digest("stockade.build", members)


class BuildLog:
    """The end of what a build prints."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._dropped = 0

    def add(self, data: bytes) -> None:
        self._data += data
        if (surplus := len(self._data) - LOG_BYTES) > 0:
            del self._data[:surplus]
            self._dropped += surplus

    def heading(self, text: str) -> None:
        """Begin a part of it."""
        self.add(f"--- {text}\n".encode(errors="replace"))

    @property
    def content(self) -> bytes:
        """All that is kept."""
        head = f"[{self._dropped} bytes before this were dropped]\n".encode() if self._dropped else b""
        return head + bytes(self._data)

    @property
    def tail(self) -> str:
        """At most `TAIL_BYTES` bytes of text: its end."""
        text = bytes(self._data[-TAIL_BYTES:]).decode(errors="replace")
        while len(text.encode()) > TAIL_BYTES:  # what could not be decoded has become longer
            text = text[1:]
        return text


class Steps:
    """Carries out a build in a sandbox that has been made for it and has no main process."""

    def __init__(self, backend: Sandboxing, name: str, image: Image, log: BuildLog) -> None:
        self._backend = backend
        self._name = name
        self._image = image
        self._log = log

    async def carry_out(self, spec: BuildSpec) -> None:
        """Write the files, then run the commands one after the other.

        Raises:
            BuildFailed: a file cannot be written there, a command failed, or the build ran out of a limit.
            BackendLost, Unavailable, Fault: it could not be carried out.
        """
        if spec.files:
            await self._write(spec)
        for number, command in enumerate(spec.setup, 1):
            self._log.heading(f"setup {number} of {len(spec.setup)}: {command}")
            end = await self._run(f"setup-{number}", ("/bin/sh", "-c", command))
            if end.outcome is not Outcome.EXITED or end.exit_code != 0:
                await self._fail(f"setup[{number - 1}]", end)

    async def still(self) -> None:
        """End what the commands left running: a layer is taken of what nobody changes."""
        # To all that it may signal but itself: everything that the commands started is of this user, and stays so.
        await self._run("still", ("/bin/sh", "-c", "kill -KILL -1"))

    async def _write(self, spec: BuildSpec) -> None:
        files = await self._backend.files(self._name, user="root")
        try:
            for file in spec.files:
                self._log.heading(f"file {file.path}: {len(file.content)} bytes")
                try:
                    await files.write(file.path, _chunks(file.content), mode=file.mode)
                except (Invalid, NotFound, Denied, Conflict, LimitExceeded) as error:
                    raise BuildFailed(f"{file.path} cannot be written: {error}", self._log.tail) from error
        finally:
            files.close()

    async def _run(self, process: str, argv: tuple[str, ...]) -> ProcessEnd:
        spec = LiveExec(argv=argv, env=self._image.environment({}, user="root"), cwd=self._image.cwd, user="root")
        try:
            streams = await self._backend.exec(self._name, process, spec)
        except (NotFound, Conflict):
            # It has ended: by its deadline, or by a limit that ends all of it.
            known = await self._backend.inspect(self._name)
            return ProcessEnd(outcome=known.outcome or Outcome.CANCELLED, exit_code=137)
        try:
            await streams.close_stdin()
            stdout = stderr = 0
            while True:
                output = await streams.read(stdout, stderr)
                self._log.add(output.stdout.data)
                self._log.add(output.stderr.data)
                stdout, stderr = output.stdout.end, output.stderr.end
                if output.end is not None:
                    return output.end
        finally:
            streams.close()

    async def _fail(self, step: str, end: ProcessEnd) -> None:
        reason = _REASONS.get(end.outcome)
        if reason is None:
            known = await self._backend.inspect(self._name)
            reason = _REASONS.get(known.outcome) if known.outcome is not None and not known.is_running else None
        raise BuildFailed(f"{step} of the build failed: {reason or f'it ended with {end.exit_code}'}", self._log.tail)


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), _CHUNK):
        yield content[start : start + _CHUNK]
        await asyncio.sleep(0)
