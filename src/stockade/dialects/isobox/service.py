"""What the isobox routes and the gRPC service share: runs, test cases, deduplication, and what is counted."""

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import to_json

from stockade.dialects.isobox import translate
from stockade.dialects.isobox.dedup import AnswerCache, cache_key
from stockade.dialects.isobox.metrics import Metrics
from stockade.dialects.isobox.settings import IsoboxSettings
from stockade.dialects.isobox.wire import (
    BadValue,
    CasesBody,
    ExecuteBody,
    FilesBody,
    ProgramBody,
    TestCase,
    UrlsBody,
)
from stockade.engine import Engine
from stockade.errors import BackendLost, Invalid, StockadeError, UnknownLanguage
from stockade.model import Actor, Limits, Outcome, RunResult
from stockade.wire.fetch import Fetcher, FetchError
from stockade.wire.rates import Concurrency, RateLimiter

__all__ = ["DedupCounts", "DownloadFailed", "Isobox"]

UNKNOWN = "unknown"


class DownloadFailed(Invalid):
    """An input of `test-urls` could not be fetched."""

    code = "isobox.download_failed"

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"Failed to download {url[:500]}: {reason}")


@dataclass(kw_only=True)
class DedupCounts:
    """How often a kept answer served."""

    hits: int = 0
    misses: int = 0


@dataclass(frozen=True, kw_only=True)
class Isobox:
    """The dialect's own small services around the engine."""

    engine: Engine
    settings: IsoboxSettings
    metrics: Metrics
    rates: RateLimiter | None
    """`None`: no rate limit."""
    concurrency: Concurrency
    fetcher: Fetcher
    cache: AnswerCache | None
    """`None`: answers are not kept."""
    dedup: DedupCounts

    async def execute(self, actor: Actor, body: ExecuteBody) -> bytes:
        """Answer `execute`: one run, or one for each test case when there are any."""
        return await self._kept(actor, body, body.test_cases)

    async def execute_cases(self, actor: Actor, body: CasesBody) -> bytes:
        """Answer `execute/test-cases`."""
        return await self._kept(actor, body, body.test_cases)

    async def execute_files(self, actor: Actor, body: FilesBody) -> bytes:
        """Answer `execute/test-files`."""
        return await self._kept(actor, body, translate.to_cases(body))

    async def execute_urls(self, actor: Actor, body: UrlsBody) -> bytes:
        """Answer `execute/test-urls`. The program is checked before anything is fetched.

        Raises:
            DownloadFailed: an input could not be fetched; nothing has run.
        """
        with self._counted(body.language):
            self.engine.runs.check(translate.to_run(body, self.engine.limits.maximum), cap_limits=True)
            self._check_count("test_urls", len(body.test_urls))
            cases = await self._fetch(body)
        return await self._kept(actor, body, cases)

    async def run(self, actor: Actor, body: ProgramBody) -> tuple[RunResult, Limits]:
        """Run the program once; the result, and the limits that it ran under."""
        with self._counted(body.language):
            spec = translate.to_run(body, self.engine.limits.maximum)
            limits = self.engine.runs.check(spec, cap_limits=True)
            with self.concurrency.hold(actor):
                began = time.monotonic()
                result = await self.engine.runs.run(actor, spec, cap_limits=True)
            _check_not_lost(result)
            self.metrics.ran(result, time.monotonic() - began)
        return result, limits

    async def run_cases(self, actor: Actor, body: ProgramBody, cases: Sequence[TestCase]) -> dict[str, Any]:
        """Compile once, then run the cases one after the other, each in a sandbox of its own."""
        runs = self.engine.runs
        with self._counted(body.language):
            self._check_count("test_cases", len(cases))
            spec = translate.to_run(body, self.engine.limits.maximum)
            base = runs.check(spec, cap_limits=True)
            limits = [
                runs.check(
                    replace(spec, limits=translate.to_case_limits(spec.limits, case)),
                    cap_limits=True,
                )
                if case.timeout_seconds or case.memory_limit_mb
                else base
                for case in cases
            ]
            with self.concurrency.hold(actor):
                began = time.monotonic()
                async with runs.prepare(actor, spec) as program:
                    if not program.runnable:
                        assert program.compilation is not None
                        self.metrics.ran(
                            RunResult(
                                language=program.language.name,
                                compilation=program.compilation,
                                process=None,
                                queued_s=program.queued_s,
                            ),
                            time.monotonic() - began,
                        )
                        return translate.from_compilation(program.compilation)
                    results: list[dict[str, Any]] = []
                    room = self.settings.test_output_bytes
                    for case, limit in zip(cases, limits, strict=True):
                        result = await runs.run_program(
                            actor,
                            program,
                            limit,
                            stdin=case.input.encode(),
                            args=spec.args,
                        )
                        _check_not_lost(result)
                        # The first case waited for the compiler, the others did not wait for it again.
                        self.metrics.ran(result, time.monotonic() - began, compiled=not results)
                        began = time.monotonic()
                        shown = translate.clipped(translate.from_case(case, result, limit), room)
                        room -= len(shown["stdout"]) + len(shown["stderr"])
                        results.append(shown)
            return translate.from_cases(results)

    async def _kept(self, actor: Actor, body: ProgramBody, cases: Sequence[TestCase] | None) -> bytes:
        """The answer, from the cache where it has one."""
        if self.cache is None:
            return _encoded(await self._answer(actor, body, cases))
        language = self._language_label(body.language)
        own = body.model_dump_json(exclude={"test_cases", "test_files", "test_urls"})
        inputs = "null" if cases is None else json.dumps([case.model_dump() for case in cases])
        key = cache_key(actor.id, language, own, inputs)
        kept = await self.cache.get(key)
        if kept is not None:
            self.dedup.hits += 1
            return kept
        self.dedup.misses += 1
        answer = await self._answer(actor, body, cases)
        encoded = _encoded(answer)
        outcomes = [
            answer["outcome"],
            *(case["outcome"] for case in answer["test_results"] or ()),
        ]
        if translate.repeatable(outcomes):
            await self.cache.put(key, encoded)
        return encoded

    async def _answer(self, actor: Actor, body: ProgramBody, cases: Sequence[TestCase] | None) -> dict[str, Any]:
        if cases is not None:
            return await self.run_cases(actor, body, cases)
        result, limits = await self.run(actor, body)
        return translate.from_run(result, limits)

    async def _fetch(self, body: UrlsBody) -> list[TestCase]:
        cases: list[TestCase] = []
        room = self.settings.test_url_total_bytes
        for entry in body.test_urls:
            try:
                text = await self.fetcher.text(entry.url)
            except FetchError as error:
                raise DownloadFailed(entry.url, str(error)) from None
            room -= len(text)
            if room < 0:
                raise DownloadFailed(
                    entry.url,
                    f"the inputs are larger than {self.settings.test_url_total_bytes} bytes together",
                )
            cases.append(TestCase(name=entry.name, input=text))
        return cases

    async def versions(self, timeout_s: float) -> Mapping[str, str]:
        """Versions of the installed languages, as far as they are known within *timeout_s*."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self.engine.languages.versions(self.engine.runs.backend.run, self.engine.limits)
        except TimeoutError:
            return {}  # what was learnt meanwhile is remembered: the next call gets further

    def _check_count(self, name: str, count: int) -> None:
        if count > self.settings.max_test_cases:
            raise BadValue(name, f"must not hold more than {self.settings.max_test_cases}")

    @contextmanager
    def _counted(self, language: str) -> Iterator[None]:
        """Count what ends the block without a result."""
        try:
            yield
        except asyncio.CancelledError:
            self.metrics.failed(self._language_label(language), "cancelled")
            raise
        except StockadeError:
            self.metrics.failed(self._language_label(language), "error")
            raise

    def _language_label(self, name: str) -> str:
        """The language's own name: what callers send is without bounds and must not become a label."""
        try:
            return self.engine.languages.find(name).name
        except UnknownLanguage:
            return UNKNOWN


def _check_not_lost(result: RunResult) -> None:
    if result.last.outcome is Outcome.LOST:
        raise BackendLost("the sandbox was lost while the program ran; send the request again")


def _encoded(answer: dict[str, Any]) -> bytes:
    return to_json(answer)
