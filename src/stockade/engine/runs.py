"""One-shot runs: compile where the language needs it, run once or once for each input, each time in a fresh sandbox."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from stockade.backends.base import Backend, Glimpse, SandboxSpec
from stockade.engine.backend_policy import BackendPolicy
from stockade.engine.compilations import Compilations, compilation_key
from stockade.engine.languages import Language, Languages
from stockade.engine.limits import LimitPolicy
from stockade.engine.queue import Queue
from stockade.engine.templates import Templates
from stockade.engine.toolchains import Toolchains
from stockade.errors import Invalid, StockadeError
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
from stockade.spans import OUTCOME, span

__all__ = ["WORK_DIR", "Program", "Runs"]

log = structlog.get_logger()

WARM_S = 30.0
"""Time that the backend has to take note of a template."""
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
    cached: bool = False
    """Its compilation is that of an equal program before."""
    backend: str = ""
    """As `SandboxSpec.backend`."""

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
    compilations: Compilations
    toolchains: Toolchains
    templates: Templates
    backends: BackendPolicy = BackendPolicy()

    async def run(
        self,
        actor: Actor,
        spec: RunSpec,
        *,
        cap_limits: bool = False,
        watched: Callable[[Glimpse], None] | None = None,
    ) -> RunResult:
        """Compile *spec* where its language needs that, run it, and say what came of it.

        All checks come before the first sandbox is made. Cancelling the call kills what runs.

        Args:
            cap_limits: cut limits above the server's maximum to it instead of refusing them.
            watched: called before the program starts, with what shows its output as it comes; not for a compiler's.

        Raises:
            UnknownLanguage, LanguageUnavailable, UnknownTemplate, InvalidLimit, Invalid: nothing has run.
            UnknownBackend, BackendDenied, Unsupported: nor has anything when it cannot come from that backend.
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
                    compilation_cached=program.cached,
                )
            return await self.run_program(
                actor,
                program,
                limits,
                stdin=spec.stdin,
                args=spec.args,
                on_output_limit=spec.on_output_limit,
                watched=watched,
            )

    def check(self, spec: RunSpec, *, cap_limits: bool = False) -> Limits:
        """The limits that *spec* would run under; raises all that `run` refuses before it makes a sandbox."""
        language = self.languages.available(spec.language)
        self.templates.check(language, spec.template)
        for arg in spec.args:
            if "\0" in arg:
                raise Invalid("an argument must not hold a NUL character")
        return self.limits.resolve(language.limits, spec.limits, cap=cap_limits)

    @asynccontextmanager
    async def prepare(self, actor: Actor, spec: RunSpec) -> AsyncIterator[Program]:
        """Compile once, or take what an equal compilation left; run it as often as you like, until the block ends."""
        language = self.templates.chosen(actor, self.languages.available(spec.language), spec.template)
        files = {language.main_file: spec.code.encode(errors="surrogatepass"), **language.files}
        step = self.toolchains.compile_step(language)
        backend = self.backends.choose(actor, spec.backend)
        if step is None:
            yield Program(language=language, compilation=None, files=files, bundle=None, queued_s=0.0, backend=backend)
            return
        limits = self.limits.resolve(language.compile_limits, LimitOverrides())
        sandbox = SandboxSpec(image=language.image, limits=limits, backend=backend)
        process = ProcessSpec(
            argv=step.command(limits),
            cwd=WORK_DIR,
            env=language.environment(step, limits),
            files=files,
            collect=True,
            on_output_limit=OnOutputLimit.DROP,
        )

        async def compile() -> tuple[ProcessResult, float]:
            async with self.queue.place(actor) as queued_s:
                with span("sandbox.compile", language=language.name, queued_ms=round(1000 * queued_s)) as noted:
                    result = await self.backend.run(sandbox, process)
                    noted.set_attribute(OUTCOME, result.outcome.value)
                return result, queued_s

        key = self._key(actor, language, sandbox, process)
        async with self.compilations.compiled(key, compile) as made:
            yield Program(
                language=language,
                compilation=made.result,
                files={},
                bundle=made.bundle,
                queued_s=made.queued_s,
                cached=made.cached,
                backend=backend,
            )

    def _key(self, actor: Actor, language: Language, sandbox: SandboxSpec, process: ProcessSpec) -> str | None:
        """The name of a compilation in the cache; `None` for one that must not be kept."""
        if not self.compilations.enabled:
            return None
        if language.uncached:
            contents = [content.lower() for content in process.files.values()]
            if any(text.lower() in content for text in language.uncached for content in contents):
                return None
        return compilation_key(
            language,
            self.toolchains.identity(language),
            sandbox,
            process,
            None if self.compilations.shared else actor,
        )

    async def run_program(
        self,
        actor: Actor,
        program: Program,
        limits: Limits,
        *,
        stdin: bytes = b"",
        args: Sequence[str] = (),
        on_output_limit: OnOutputLimit = OnOutputLimit.KILL,
        watched: Callable[[Glimpse], None] | None = None,
    ) -> RunResult:
        """Run a prepared program once, in a sandbox of its own."""
        language = program.language
        async with self.queue.place(actor) as queued_s:
            with span("sandbox.run", language=language.name, queued_ms=round(1000 * queued_s)) as noted:
                process = await self.backend.run(
                    SandboxSpec(image=language.image, limits=limits, backend=program.backend),
                    _run_step(
                        language,
                        limits,
                        files=program.files,
                        bundle=program.bundle,
                        stdin=stdin,
                        args=args,
                        on_output_limit=on_output_limit,
                    ),
                    watched=watched,
                )
                noted.set_attribute(OUTCOME, process.outcome.value)
        return RunResult(
            language=language.name,
            compilation=program.compilation,
            process=process,
            queued_s=program.queued_s + queued_s,
            compilation_cached=program.cached,
        )

    async def announce(self) -> None:
        """Tell the backend which templates to keep ready, under default limits. What fails is logged, and costs time
        alone.
        """
        for language in self.templates.announced():
            limits = self.limits.resolve(language.limits, LimitOverrides())
            sandbox = SandboxSpec(image=language.image, limits=limits)
            try:
                async with asyncio.timeout(WARM_S):
                    await self.backend.warm(sandbox, _run_step(language, limits))
            except (StockadeError, TimeoutError) as error:
                preload = language.template.preload if language.template is not None else ()
                log.warning(
                    "template.not_announced", language=language.name, preload=preload, reason=str(error) or repr(error)
                )


def _run_step(
    language: Language,
    limits: Limits,
    *,
    files: Mapping[str, bytes] | None = None,
    bundle: Bundle | None = None,
    stdin: bytes = b"",
    args: Sequence[str] = (),
    on_output_limit: OnOutputLimit = OnOutputLimit.KILL,
) -> ProcessSpec:
    """The program as a process. A template is known by this very command and environment."""
    template = language.template_for(limits)
    return ProcessSpec(
        # A language with a template has the caller's arguments at the end: its file is read so.
        argv=language.run.command(limits, args if template is None else ()),
        cwd=WORK_DIR,
        env=language.environment(language.run, limits),
        files=files or {},
        bundle=bundle,
        stdin=stdin,
        args=() if template is None else tuple(args),
        template=template,
        on_output_limit=on_output_limit,
    )
