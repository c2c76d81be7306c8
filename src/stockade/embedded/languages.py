"""Languages that programs are written in, and what a sandbox is told to run one."""

import functools
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stockade.config import SandboxConfig
from stockade.embedded.records import BoxInfo
from stockade.engine.language_records import Language, Step
from stockade.engine.languages import Languages
from stockade.engine.limits import LimitPolicy
from stockade.model import LimitOverrides, Limits

__all__ = ["Program", "Stage", "of_image", "program"]


@functools.cache
def of_image() -> Languages:
    """Languages of a sandbox into which nobody can look from here: whatever is asked for is taken to be there."""
    return Languages.load(which=lambda image, requirement: True)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One process of a program."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str | None


@dataclass(frozen=True, kw_only=True)
class Program:
    """What there is to be done to run a text."""

    directory: str | None
    """To be made before, and removed afterwards; with it, all files."""
    files: Mapping[str, bytes]
    compile: Stage | None
    run: Stage


def program(language: Language, code: str, args: Sequence[str], box: BoxInfo) -> Program:
    """How *code* is run in *box*.

    What an interpreter reads lies in the working directory, under a name of its own, so that the program finds there
    what it would find if it were started there by hand. What is compiled has a directory to itself, and runs in it.
    """
    limits = _limits(language, box)
    mark = secrets.token_hex(6)
    if language.compile is None and not language.files:
        name = f".run-{mark}{language.extensions[0]}"
        words = language.run.argv
        at = words.index("{args}") if "{args}" in words else len(words)
        argv = [word.replace(language.main_file, name) for word in language.run.command(limits)]
        argv[at:at] = args  # as they are
        return Program(
            directory=None,
            files={name: code.encode()},
            compile=None,
            run=Stage(argv=tuple(argv), env=_env(language, language.run, limits), cwd=None),
        )
    directory = f"/tmp/run-{mark}"
    files = {f"{directory}/{name}": content for name, content in language.files.items()}
    files[f"{directory}/{language.main_file}"] = code.encode()
    compiling = None
    if language.compile is not None:
        argv_of = language.compile.command(limits)
        compiling = Stage(argv=argv_of, env=_env(language, language.compile, limits), cwd=directory)
    run = Stage(argv=language.run.command(limits, args), env=_env(language, language.run, limits), cwd=directory)
    return Program(directory=directory, files=files, compile=compiling, run=run)


def _limits(language: Language, box: BoxInfo) -> Limits:
    defaults = SandboxConfig()
    policy = LimitPolicy(defaults=defaults.defaults, maximum=defaults.maximum)
    found = policy.resolve(language.limits, LimitOverrides())
    return replace(found, memory_bytes=box.memory_bytes, cpus=box.cpus)


def _env(language: Language, step: Step, limits: Limits) -> dict[str, str]:
    """What the language adds to the sandbox's own environment."""
    whole = language.environment(step, limits)
    return {name: whole[name] for name in (*language.env, *step.env)}
