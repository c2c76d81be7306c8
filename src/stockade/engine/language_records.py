"""The records of a language: its steps, its version probe, its examples. `engine.language_files` reads them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from stockade.model import LimitOverrides, Limits, Template

__all__ = ["MIB", "NUMBERS", "PLACEHOLDER", "SANDBOX_PATH", "Cache", "Example", "Language", "Step", "VersionProbe"]

SANDBOX_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""Directories that are searched for commands inside a sandbox."""

MIB = 1024 * 1024
NUMBERS = ("memory_mb", "stack_mb", "disk_mb", "processes", "cpus")
"""Placeholders that stand for a limit in force."""
PLACEHOLDER = re.compile(r"\{([a-z_]+)(?:\*(\d{1,3})%)?\}")
"""`{name}`, or `{name*60%}` for a share of it."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command: the compiler's, the program's or the version probe's. No shell reads it."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)

    def command(self, limits: Limits, args: Sequence[str] = ()) -> tuple[str, ...]:
        """The argument vector under *limits*.

        Args:
            args: the caller's arguments, put where `{args}` stands, at the end where it stands nowhere. They are
                taken as they are: a placeholder in them means nothing.
        """
        words: list[str] = []
        for word in self.argv:
            if word == "{args}":
                words.extend(args)
            else:
                words.append(_fill(word, limits))
        if "{args}" not in self.argv:
            words.extend(args)
        return tuple(words)

    def with_cache(self, path: str) -> "Step":
        """The step with `{cache}` filled in: where a sandbox sees the toolchain's cache."""
        return replace(
            self,
            argv=tuple(word.replace("{cache}", path) for word in self.argv),
            env={name: value.replace("{cache}", path) for name, value in self.env.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A directory that the compile step reads: made once for each toolchain, from nothing of a tenant's."""

    fill: Step
    """Makes it: what this leaves in its working directory."""
    files: dict[str, bytes]
    """Fixed files that lie in the working directory of `fill`."""
    limits: LimitOverrides
    """Limits of `fill`."""
    compile: Step
    """Stands in for the language's compile step while the directory is there. Must do exactly the same, but faster."""


@dataclass(frozen=True, kw_only=True)
class VersionProbe:
    """How to find out which version of the runtime an image holds."""

    step: Step
    pattern: re.Pattern[str] | None
    """Its first group is the version; without a pattern the first line that is not empty is."""

    def version(self, output: str) -> str:
        """The version in the probe's *output*; empty when there is none."""
        if self.pattern is not None:
            match = self.pattern.search(output)
            return match.group(1).strip() if match else ""
        return next((line.strip() for line in output.splitlines() if line.strip()), "")


@dataclass(frozen=True, kw_only=True)
class Example:
    """A small program and what it must do; the tests run it, the docs may show it."""

    code: str
    stdin: str = ""
    args: tuple[str, ...] = ()
    stdout: str = ""
    exit_code: int = 0
    compiles: bool = True


@dataclass(frozen=True, kw_only=True)
class Language:
    """A language, or one variant of it: the same language brought by another set of commands."""

    name: str
    display_name: str
    aliases: tuple[str, ...]
    extensions: tuple[str, ...]
    """File name extensions with their dot. The first one is the language's own; others it may share."""
    image: str
    main_file: str
    files: dict[str, bytes]
    """Fixed files that lie beside the main file."""
    compile: Step | None
    compile_limits: LimitOverrides
    uncached: tuple[bytes, ...]
    """Texts, in whatever letter case, that make what the compiler leaves depend on more than its input."""
    cache: Cache | None
    run: Step
    limits: LimitOverrides
    env: dict[str, str]
    """Environment of both steps, on top of what every run gets."""
    packages: tuple[str, ...]
    """Debian packages that bring the runtime; none where Debian has it not."""
    requires: tuple[str, ...]
    """Commands that must be in the image's PATH, and absolute path patterns of which something must exist."""
    host_paths: tuple[str, ...]
    """Directories outside /usr that the runtime reads; the `host` image shows them."""
    version: VersionProbe | None
    minimum_version: tuple[int, ...] | None
    """The variant counts only once the version probe has found at least this."""
    examples: dict[str, Example]
    """By name; `hello` is always there."""
    template: Template | None = None
    """What a run may be begun from instead of a start of `run`. In `boot` stand placeholders: see `template_for`."""
    variant: int = 0
    """Position among the variants, the preferred one first."""

    def template_for(self, limits: Limits) -> Template | None:
        """`template` with the placeholders of its command filled in."""
        template = self.template
        if template is None or not template.boot:
            return template
        return replace(template, boot=tuple(_fill(word, limits) for word in template.boot))

    def environment(self, step: Step, limits: Limits) -> dict[str, str]:
        """The whole environment of *step*, built from nothing: the server's own never reaches a tenant."""
        own = {name: _fill(value, limits) for name, value in {**self.env, **step.env}.items()}
        return {
            "PATH": ":".join(SANDBOX_PATH),
            "HOME": "/home/user",
            "USER": "user",
            "LOGNAME": "user",
            "SHELL": "/bin/sh",
            "LANG": "C.UTF-8",
            "TMPDIR": "/tmp",
            **own,
        }


def _fill(word: str, limits: Limits) -> str:
    """*word* with the placeholders of limits filled in: whole numbers, at least 1."""
    values = {
        "memory_mb": limits.memory_bytes / MIB,
        "stack_mb": limits.stack_bytes / MIB,
        "disk_mb": limits.disk_bytes / MIB,
        "processes": float(limits.processes),
        "cpus": float(math.ceil(limits.cpus)),
    }

    def number(match: re.Match[str]) -> str:
        name, percent = match.groups()
        return str(max(1, int(values[name] * int(percent or 100) / 100)))

    return PLACEHOLDER.sub(number, word) if "{" in word else word
