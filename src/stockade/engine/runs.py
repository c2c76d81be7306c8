"""One-shot runs: compile where the language needs it, run once or once for each input, each time in a fresh sandbox."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from stockade.backends.base import Backend, SandboxSpec
from stockade.engine.languages import Language, Languages
from stockade.engine.limits import LimitPolicy
from stockade.engine.queue import Queue
from stockade.errors import Invalid
from stockade.model import (
    Actor,
    Bundle,
    LimitOverrides,
    Limits,
    OnOutputLimit,
    ProcessResult,
    ProcessSpec,
    RunResult,
    RunSpec,
)

__all__ = ["WORK_DIR", "Program", "Runs"]

WORK_DIR = "/code"
"""Working directory of every run; it holds the program's files and nothing else."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program that is ready to run, as often as one likes; made by `Runs.prepare`."""

    language: Language
    compilation: ProcessResult | None
    files: dict[str, bytes]
    bundle: Bundle | None
    queued_s: float

    @property
    def runnable(self) -> bool:
        """Whether there is something to run: no compile step, or one that succeeded."""
        return self.compilation is None or self.compilation.succeeded


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Runs programs; knows nothing of HTTP or kernels."""

    languages: Languages
    limits: LimitPolicy
    queue: Queue
    backend: Backend

    async def run(self, actor: Actor, spec: RunSpec, *, cap_limits: bool = False) -> RunResult:
        """Compile *spec* where its language needs that, run it, and say what came of it.

        All checks come before the first sandbox is made. Cancelling the call kills what runs.

        Args:
            cap_limits: cut limits above the server's maximum to it instead of refusing them.

        Raises:
            UnknownLanguage, LanguageUnavailable, InvalidLimit, Invalid: nothing has run.
            QueueFull, LimitExceeded: no place; nothing has run.
            BackendLost: the warden died; safe to retry.
        """
        limits = self.check(spec, cap_limits=cap_limits)
        async with self.prepare(actor, spec) as program:
            if not program.runnable:
                return RunResult(
                    language=program.language.name,
                    compilation=program.compilation,
                    process=None,
                    queued_s=program.queued_s,
                )
            return await self.run_program(
                actor, program, limits, stdin=spec.stdin, args=spec.args, on_output_limit=spec.on_output_limit
            )

    def check(self, spec: RunSpec, *, cap_limits: bool = False) -> Limits:
        """The limits that *spec* would run under; raises all that `run` refuses before it makes a sandbox."""
        language = self.languages.available(spec.language)
        for arg in spec.args:
            if "\0" in arg:
                raise Invalid("an argument must not hold a NUL character")
        return self.limits.resolve(language.limits, spec.limits, cap=cap_limits)

    @asynccontextmanager
    async def prepare(self, actor: Actor, spec: RunSpec) -> AsyncIterator[Program]:
        """Compile once; the program may then be run many times, until the block ends."""
        language = self.languages.available(spec.language)
        files = {language.main_file: spec.code.encode(errors="surrogatepass"), **language.files}
        if language.compile is None:
            yield Program(language=language, compilation=None, files=files, bundle=None, queued_s=0.0)
            return
        limits = self.limits.resolve(language.compile_limits, LimitOverrides())
        async with self.queue.place(actor) as queued_s:
            result = await self.backend.run(
                SandboxSpec(image=language.image, limits=limits),
                ProcessSpec(
                    argv=language.compile.command(limits),
                    cwd=WORK_DIR,
                    env=language.environment(language.compile, limits),
                    files=files,
                    collect=True,
                    on_output_limit=OnOutputLimit.DROP,
                ),
            )
        try:
            yield Program(
                language=language,
                compilation=replace(result, bundle=None),
                files={},
                bundle=result.bundle,
                queued_s=queued_s,
            )
        finally:
            if result.bundle is not None:
                result.bundle.close()

    async def run_program(
        self,
        actor: Actor,
        program: Program,
        limits: Limits,
        *,
        stdin: bytes = b"",
        args: Sequence[str] = (),
        on_output_limit: OnOutputLimit = OnOutputLimit.KILL,
    ) -> RunResult:
        """Run a prepared program once, in a sandbox of its own."""
        language = program.language
        async with self.queue.place(actor) as queued_s:
            process = await self.backend.run(
                SandboxSpec(image=language.image, limits=limits),
                ProcessSpec(
                    argv=language.run.command(limits, args),
                    cwd=WORK_DIR,
                    env=language.environment(language.run, limits),
                    files=program.files,
                    bundle=program.bundle,
                    stdin=stdin,
                    on_output_limit=on_output_limit,
                ),
            )
        return RunResult(
            language=language.name,
            compilation=program.compilation,
            process=process,
            queued_s=program.queued_s + queued_s,
        )
