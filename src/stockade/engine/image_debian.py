"""Images of Debian and what has its packages, made here by mmdebstrap: for the operator, whose machine it runs on."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from stockade.engine.image_manifests import Platform, sha256_of
from stockade.engine.image_sources import ImageUnavailable, SourceImage, SourceLayer
from stockade.engine.images import STANDARD_PATH
from stockade.errors import Invalid, Unsupported

__all__ = ["Debian"]

_PROGRAM = "mmdebstrap"
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*(?::[a-z0-9-]+)?(?:=[A-Za-z0-9.+:~-]+)?")
_SUITE = re.compile(r"[a-z][a-z0-9./-]{0,62}")
_MIRROR = re.compile(r"(?:https?|file|copy):[!-~]+")
_MOST_PACKAGES = 1000
_TAIL = 2000
_GRACE_S = 15.0
_CHUNK = 1 << 18


class Debian:
    """A minimal system of a suite, with packages. It is made when it is described."""

    kind = "debian"
    is_private = False

    def __init__(
        self,
        packages: Sequence[str] = (),
        *,
        directory: Path,
        suite: str | None = None,
        mirror: str | None = None,
        time_s: float = 540.0,
    ) -> None:
        """Take what is wanted.

        Args:
            packages: beyond those that the suite marks as required, and apt: `python3`, `curl=7.88.1-10`.
            directory: where the system lies meanwhile, and room for twice its size is.
            suite: `bookworm`, …; `None` for this machine's own.
            mirror: where packages come from, a URL; `None` for Debian's.
            time_s: for the whole of it.

        Raises:
            Invalid: a package, the suite or the mirror cannot be called so.
        """
        if len(packages) > _MOST_PACKAGES:
            raise Invalid(f"packages: {len(packages)}; {_MOST_PACKAGES} is the most")
        for package in packages:
            if not _PACKAGE.fullmatch(package):
                raise Invalid(f"packages: {package[:100]!r} is no package's name")
        if suite is not None and not _SUITE.fullmatch(suite):
            raise Invalid(f"suite: {suite[:100]!r} is no suite's name")
        if mirror is not None and not _MIRROR.fullmatch(mirror):
            raise Invalid(f"mirror: {mirror[:100]!r} is no URL (http:, https:, file: or copy:)")
        self._packages = tuple(packages)
        self._suite = suite
        self._mirror = mirror
        self._time_s = time_s
        self._archive = directory / f".debian-{secrets.token_hex(8)}.tar"

    async def describe(self) -> SourceImage:
        """Make it; see `ImageSource.describe`.

        Raises:
            Unsupported: mmdebstrap is not installed.
            ImageUnavailable: it did not work; with the end of what it printed.
        """
        program = shutil.which(_PROGRAM)
        if program is None:
            raise Unsupported(f"{_PROGRAM} is not installed: apt-get install {_PROGRAM}")
        suite = self._suite or _own_suite()
        argv = [
            program, "--variant=minbase", "--format=tar",
            # No devices: a sandbox has those that it may have.
            "--skip=output/dev",
            *([f"--include={','.join(self._packages)}"] if self._packages else ()),
            "--", suite, str(self._archive), *([self._mirror] if self._mirror else ()),
        ]  # fmt: skip
        try:
            await self._make(argv)
            digest, size = await asyncio.to_thread(_digest_of, self._archive)
        except OSError as error:
            raise ImageUnavailable(f"{self._archive.parent}: {error.strerror}") from error
        config = {
            "architecture": Platform.of_this_machine().architecture,
            "os": "linux",
            "config": {"Cmd": ["/bin/bash"], "Env": [f"PATH={STANDARD_PATH}", "LANG=C.UTF-8"]},
            "rootfs": {"type": "layers", "diff_ids": [digest]},
        }
        content = json.dumps(config, sort_keys=True).encode()
        return SourceImage(
            digest=sha256_of(content),
            config=content,
            layers=(SourceLayer(digest=digest, diff_id=digest, size=size),),
        )

    async def open(self, layer: SourceLayer) -> AsyncIterator[bytes]:
        """See `ImageSource.open`."""
        return self._chunks()

    async def close(self) -> None:
        """See `ImageSource.close`."""
        self._archive.unlink(missing_ok=True)

    async def _chunks(self) -> AsyncIterator[bytes]:
        with await asyncio.to_thread(open, self._archive, "rb", buffering=0) as file:
            while chunk := await asyncio.to_thread(file.read, _CHUNK):
                yield chunk

    async def _make(self, argv: Sequence[str]) -> None:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={
                "PATH": STANDARD_PATH,
                "LC_ALL": "C.UTF-8",
                "TMPDIR": str(self._archive.parent),
                "HOME": "/nonexistent",
            },
            start_new_session=True,
        )
        tail = b""
        try:
            async with asyncio.timeout(self._time_s):
                assert process.stderr is not None
                while printed := await process.stderr.read(4096):
                    tail = (tail + printed)[-_TAIL:]
                code = await process.wait()
        except TimeoutError:
            raise ImageUnavailable(f"{_PROGRAM} did not come to its end within {self._time_s:g} s") from None
        finally:
            if process.returncode is None:
                await asyncio.shield(_end(process))
        if code != 0:
            raise ImageUnavailable(
                f"{_PROGRAM} failed with {code}; the end of what it printed:\n{tail.decode(errors='replace')}"
            )


async def _end(process: asyncio.subprocess.Process) -> None:
    """Have mmdebstrap clean up behind itself, which it does at SIGTERM, and end it where it does not."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        async with asyncio.timeout(_GRACE_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _own_suite() -> str:
    """This machine's suite. Raises Invalid: it has none."""
    with contextlib.suppress(OSError):
        for line in Path("/etc/os-release").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition("=")
            if name == "VERSION_CODENAME" and _SUITE.fullmatch(value.strip('"')):
                return value.strip('"')
    raise Invalid("suite: this machine is no Debian: name one (bookworm, …)")


def _digest_of(path: Path) -> tuple[str, int]:
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}", os.fstat(file.fileno()).st_size
