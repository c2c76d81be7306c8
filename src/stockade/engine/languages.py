"""Languages as data: each is one TOML file in `stockade/languages/`, or in a directory that the operator names.

A language may have several variants, in order of preference; the first whose commands the image holds is the one in
force. That is looked up again every few seconds, so a runtime that is installed later appears without a restart.
"""

import asyncio
import glob
import math
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Protocol

from stockade.backends.base import SandboxSpec
from stockade.engine.language_files import read_language
from stockade.engine.language_records import SANDBOX_PATH, Example, Language, Step, VersionProbe
from stockade.engine.limits import LimitPolicy
from stockade.errors import Invalid, LanguageUnavailable, StockadeError, UnknownLanguage
from stockade.model import LimitOverrides, OnOutputLimit, ProcessResult, ProcessSpec

__all__ = ["Example", "HostCommands", "Language", "Languages", "Step", "VersionProbe", "Which"]

RECHECK_S = 5.0
"""How long an answer about an installed command is believed, in seconds."""

VERSION_TTL_S = 3600.0
"""How long a version is believed, in seconds."""

_PROBES_AT_ONCE = 2

RunInSandbox = Callable[[SandboxSpec, ProcessSpec], Awaitable[ProcessResult]]
"""`Backend.run`, or something that behaves like it."""


class Which(Protocol):
    """Tells whether an image holds what a language requires."""

    def __call__(self, image: str, requirement: str) -> bool:
        """Whether *image* has *requirement*: a command in its PATH, or an absolute path pattern."""
        ...


class HostCommands:
    """Looks a requirement up in the host's file system, as the `host` image will show it.

    A command counts only when what it finally points to is shown as well: a link out of /usr/local/bin into somebody's
    home directory is broken inside a sandbox. Of other images everything is believed; what they lack, the run tells.
    """

    def __init__(self, host_paths: Iterable[str] = ()) -> None:
        self._shown = tuple(f"{path}/" for path in ("/usr", "/bin", "/sbin", "/lib", "/lib64", *host_paths))

    def __call__(self, image: str, requirement: str) -> bool:
        if image != "host":
            return True
        if requirement.startswith("/"):
            return any(self._visible(path) for path in glob.iglob(requirement))
        return any(self._executable(f"{directory}/{requirement}") for directory in SANDBOX_PATH)

    def _visible(self, path: str) -> bool:
        return f"{os.path.realpath(path)}/".startswith(self._shown)

    def _executable(self, path: str) -> bool:
        try:
            mode = os.stat(path).st_mode
        except OSError:
            return False
        # The bit for others: a tenant is nobody's owner on the host.
        return stat.S_ISREG(mode) and bool(mode & stat.S_IXOTH) and self._visible(path)


class Languages:
    """All languages that this server knows, installed or not."""

    def __init__(
        self,
        definitions: Iterable[Sequence[Language]],
        *,
        host_paths: Iterable[str] = (),
        which: Which | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the variants of each language, the preferred one first.

        Args:
            host_paths: directories that the operator shows in the `host` image besides.
            which: tells what an image holds; by default looks at the host.
            clock: seconds that only grow; tells when to look again.

        Raises:
            Invalid: two languages share a name or an alias, whatever the letter case.
        """
        self._variants = {variants[0].name: tuple(variants) for variants in definitions}
        self._by_name = _index(self._variants)
        self._host_paths = tuple(
            sorted({path for v in self._all_variants() for path in v.host_paths if _is_real(path)})
        )
        self._which = which or HostCommands((*host_paths, *self._host_paths))
        self._clock = clock
        self._looked_up: dict[tuple[str, str], tuple[float, bool]] = {}
        self._versions: dict[tuple[str, int], tuple[float, str]] = {}
        self._probing = asyncio.Lock()

    @classmethod
    def load(
        cls, directories: Iterable[Path] = (), *, host_paths: Iterable[str] = (), which: Which | None = None
    ) -> "Languages":
        """Read our own languages, then those in *directories*; a later file replaces an earlier one of the same name.

        Raises:
            Invalid: a directory or file cannot be read, or a file says something wrong; the message names file and key.
        """
        definitions: dict[str, Sequence[Language]] = {}
        for source in (resources.files("stockade") / "languages", *directories):
            try:
                files = sorted((f for f in source.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
                for file in files:
                    name = file.name.removesuffix(".toml")
                    definitions[name] = read_language(file.read_text("utf-8"), source=str(file), name=name)
            except (OSError, UnicodeDecodeError) as error:
                raise Invalid(f"languages in {source} cannot be read: {error}") from error
        return cls(definitions.values(), host_paths=host_paths, which=which)

    def find(self, name: str) -> Language:
        """The language *name*: the variant in force, or the preferred one when none is installed.

        A name or alias is taken as written first, then without regard to letter case.

        Raises:
            UnknownLanguage: nothing has this name; the error lists what there is.
        """
        found = self._by_name.get(name) or self._by_name.get(name.casefold())
        if found is None:
            raise UnknownLanguage(name, self._variants)
        variants = self._variants[found]
        return next((v for v in variants if self._usable(v)), variants[0])

    def available(self, name: str) -> Language:
        """The variant of *name* that can run here.

        Raises:
            UnknownLanguage: nothing has this name.
            LanguageUnavailable: its commands are not installed; the error names the Debian packages.
        """
        language = self.find(name)
        if not self._usable(language):
            raise LanguageUnavailable(language.name, language.packages)
        return language

    def is_available(self, name: str) -> bool:
        """Whether `available` would find *name*."""
        return self._usable(self.find(name))

    def all(self) -> tuple[Language, ...]:
        """Every language by name, installed or not; of each what `find` would say."""
        return tuple(self.find(name) for name in sorted(self._variants))

    def guess(self, file_name: str) -> Language:
        """The language of a file, by its extension.

        Of several the installed ones count; then one whose first extension it is goes before one that only shares it.

        Raises:
            Invalid: no language has that extension, or several have and none comes first.
        """
        extension = PurePosixPath(file_name).suffix
        found = [language for language in self.all() if extension and extension in language.extensions]
        found = [language for language in found if self._usable(language)] or found
        found = [language for language in found if language.extensions[0] == extension] or found
        if not found:
            raise Invalid(f"no language is known for the extension of {file_name!r}; name the language")
        if len(found) > 1:
            names = ", ".join(language.name for language in found)
            raise Invalid(f"{file_name!r} may be any of: {names}; name the language")
        return found[0]

    def host_paths(self) -> tuple[str, ...]:
        """Directories outside /usr that some language reads and this host has.

        Looked up once: the image is made when the server starts, so a language that needs a directory which came later
        is available after a restart.
        """
        return self._host_paths

    async def versions(self, run: RunInSandbox, limits: LimitPolicy) -> Mapping[str, str]:
        """The version of every installed language by name; empty where the runtime does not tell.

        The runtimes are asked in real sandboxes, few at a time, and the answers are believed for an hour. A variant
        with a minimum version comes into force when it has been asked. Callers that come meanwhile wait for the same
        answers.

        Args:
            run: `Backend.run`.
            limits: gives each probe the limits of its language.
        """
        async with self._probing:
            places = asyncio.Semaphore(_PROBES_AT_ONCE)
            async with asyncio.TaskGroup() as group:
                for variant in self._all_variants():
                    if variant.version is not None and self._installed(variant):
                        group.create_task(self._learn(variant, variant.version, run, limits, places))
        return {found.name: self._version(found) or "" for found in self.all() if self._usable(found)}

    async def _learn(
        self, language: Language, probe: VersionProbe, run: RunInSandbox, limits: LimitPolicy, places: asyncio.Semaphore
    ) -> None:
        if self._version(language) is not None:
            return
        resolved = limits.resolve(language.limits, LimitOverrides())
        process = ProcessSpec(
            argv=probe.step.command(resolved),
            cwd="/tmp",
            env=language.environment(probe.step, resolved),
            on_output_limit=OnOutputLimit.DROP,
        )
        async with places:
            try:
                # The sandbox ends by itself at its wall limit; the rest is for building it.
                async with asyncio.timeout(resolved.wall_s + 10):
                    result = await run(SandboxSpec(image=language.image, limits=resolved), process)
            except (StockadeError, TimeoutError):
                return  # not remembered: the next call asks again
        # Some runtimes tell it on standard error, some with a status that is not 0.
        output = (result.stdout + b"\n" + result.stderr).decode(errors="replace")
        self._versions[language.name, language.variant] = (self._clock(), probe.version(output))

    def _version(self, language: Language) -> str | None:
        asked_at, version = self._versions.get((language.name, language.variant), (-math.inf, None))
        return version if self._clock() - asked_at < VERSION_TTL_S else None

    def _usable(self, language: Language) -> bool:
        if not self._installed(language):
            return False
        if language.minimum_version is None:
            return True
        version = self._versions.get((language.name, language.variant), (0.0, ""))[1]
        numbers = tuple(int(n) for n in version.split(".") if n.isdecimal())
        return numbers >= language.minimum_version

    def _all_variants(self) -> Iterator[Language]:
        return chain.from_iterable(self._variants.values())

    def _installed(self, language: Language) -> bool:
        if language.image == "host" and not set(language.host_paths) <= set(self._host_paths):
            return False
        return all(self._has(language.image, requirement) for requirement in language.requires)

    def _has(self, image: str, requirement: str) -> bool:
        now = self._clock()
        looked_at, present = self._looked_up.get((image, requirement), (-math.inf, False))
        if now - looked_at >= RECHECK_S:
            present = self._which(image, requirement)
            self._looked_up[image, requirement] = (now, present)
        return present


def _is_real(path: str) -> bool:
    # The warden refuses what leads through a link: a link could be turned to something that must not be seen.
    return os.path.isdir(path) and os.path.realpath(path) == path


def _index(variants: Mapping[str, Sequence[Language]]) -> dict[str, str]:
    """Every spelling, as written and in lower case, with the name of its language."""
    index: dict[str, str] = {}
    for name, (language, *_) in variants.items():
        for spelling in {s for word in (name, *language.aliases) for s in (word, word.casefold())}:
            if index.setdefault(spelling, name) != name:
                raise Invalid(f"languages {index[spelling]!r} and {name!r} both call themselves {spelling!r}")
    return index
