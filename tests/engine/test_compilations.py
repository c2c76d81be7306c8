"""The compile cache: what makes two compilations equal, what is kept for how long, and who waits for whom."""

import asyncio
import dataclasses
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.backends.base import SandboxSpec
from stockade.config import SandboxConfig
from stockade.engine import Compilations, Engine, Languages, Runs
from stockade.engine.compilations import ENTRY_BYTES, compilation_key
from stockade.engine.digests import digest
from stockade.errors import BackendLost
from stockade.model import Actor, Outcome, ProcessResult, ProcessSpec, RunResult, RunSpec, Usage

pytestmark = pytest.mark.anyio

C = Languages.load().find("c")
SANDBOX = SandboxSpec(image="host", limits=SandboxConfig().defaults)
PROCESS = ProcessSpec(argv=("cc", "main.c"), cwd="/code", env={"A": "1"}, files={"main.c": b"int main"}, collect=True)
ALICE, BOB = Actor(id="alice"), Actor(id="bob")
KB = 1024


class FakeBundle:
    """A bundle that knows whether it was closed."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Compiler:
    """Compiles when it is let; counts how often it was asked."""

    def __init__(self, *, outcome: Outcome = Outcome.EXITED, exit_code: int | None = 0, size: int = KB) -> None:
        self.outcome = outcome
        self.exit_code = exit_code
        self.size = size
        self.calls = 0
        self.error: Exception | None = None
        self.go = asyncio.Event()
        self.go.set()
        self.bundles: list[FakeBundle] = []

    async def __call__(self) -> tuple[ProcessResult, float]:
        self.calls += 1
        await self.go.wait()
        if self.error is not None:
            raise self.error
        bundle = FakeBundle(self.size) if self.exit_code == 0 else None
        if bundle is not None:
            self.bundles.append(bundle)
        result = ProcessResult(
            outcome=self.outcome,
            exit_code=self.exit_code,
            signal=None,
            stdout=b"",
            stderr=b"warning",
            stdout_truncated=False,
            stderr_truncated=False,
            usage=Usage(wall_s=0.5, cpu_user_s=0.25, cpu_system_s=0.0, memory_peak_bytes=KB),
            bundle=bundle,
        )
        return result, 0.125


def cache(most_bytes: int = 1 << 20, most_entries: int = 100) -> Compilations:
    return Compilations(most_bytes=most_bytes, most_entries=most_entries)


async def compiled(kept: Compilations, key: str | None, compiler: Compiler) -> bool:
    """Whether the compilation came from the cache."""
    async with kept.compiled(key, compiler) as made:
        assert made.bundle is None or not made.bundle.closed  # type: ignore[attr-defined]
        return made.cached


async def until_asked(compiler: Compiler, calls: int = 1) -> None:
    deadline = time.monotonic() + 30
    while compiler.calls < calls:
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


# -- the key


def key(
    toolchain: str = "gcc 12",
    sandbox: SandboxSpec = SANDBOX,
    process: ProcessSpec = PROCESS,
    actor: Actor | None = ALICE,
) -> str:
    return compilation_key(C, toolchain, sandbox, process, actor)


@pytest.mark.parametrize("change", [
    {"argv": ("cc", "-g", "main.c")},
    {"argv": ("cc", "main.c", "A"), "env": {}},
    {"env": {"A": "2"}},
    {"env": {"A": "1", "B": ""}},
    {"cwd": "/work"},
    {"stdin": b"x"},
    {"files": {"main.c": b"int main "}},
    {"files": {"main.h": b"int main"}},
    {"files": {"main.c": b"int ", "main": b".cint main"}},
])  # fmt: skip
def test_whatever_changes_the_compile_step_changes_the_key(change: dict[str, object]) -> None:
    assert key(process=dataclasses.replace(PROCESS, **change)) != key()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(SANDBOX.limits)])
def test_every_limit_changes_the_key(name: str) -> None:
    limits = dataclasses.replace(SANDBOX.limits, **{name: getattr(SANDBOX.limits, name) + 1})
    assert key(sandbox=dataclasses.replace(SANDBOX, limits=limits)) != key()


def test_image_toolchain_language_and_actor_change_the_key() -> None:
    other = compilation_key(Languages.load().find("cpp"), "gcc 12", SANDBOX, PROCESS, ALICE)
    image = key(sandbox=dataclasses.replace(SANDBOX, image="debian"))
    assert len({key(), other, image, key(toolchain="gcc 13"), key(actor=BOB), key(actor=None)}) == 6
    assert key(actor=Actor(id="")) != key(actor=None)


def test_the_order_of_files_and_variables_does_not_change_the_key() -> None:
    one = dataclasses.replace(PROCESS, env={"A": "1", "B": "2"}, files={"a": b"1", "b": b"2"})
    two = dataclasses.replace(PROCESS, env={"B": "2", "A": "1"}, files={"b": b"2", "a": b"1"})
    assert key(process=one) == key(process=two)


@given(st.lists(st.binary(max_size=3), max_size=4), st.lists(st.binary(max_size=3), max_size=4))
def test_different_members_never_share_a_digest(one: list[bytes], two: list[bytes]) -> None:
    assert (digest("test", one) == digest("test", two)) == (one == two)


def test_a_digest_is_for_one_purpose() -> None:
    assert digest("one", ["a"]) != digest("two", ["a"])


# -- what is kept


async def test_an_equal_compilation_is_not_made_again_and_its_result_is_the_first_one() -> None:
    kept, compiler = cache(), Compiler()
    async with kept.compiled("key", compiler) as first:
        assert (first.cached, first.queued_s) == (False, 0.125)
    async with kept.compiled("key", compiler) as second:
        assert (second.cached, second.queued_s, second.result) == (True, 0.0, first.result)
        assert second.bundle is first.bundle
    assert (compiler.calls, kept.hits, kept.misses, kept.bytes) == (1, 1, 1, ENTRY_BYTES + KB + len(b"warning"))


async def test_what_the_compiler_refused_is_kept() -> None:
    kept, compiler = cache(), Compiler(exit_code=1)
    assert [await compiled(kept, "key", compiler) for _ in range(2)] == [False, True]


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.EXITED])
async def test_what_a_limit_ended_is_compiled_again(outcome: Outcome) -> None:
    kept, compiler = cache(), Compiler(outcome=outcome, exit_code=None)
    assert [await compiled(kept, "key", compiler) for _ in range(2)] == [False, False]
    assert len(kept) == 0


async def test_without_a_key_or_without_memory_nothing_is_kept() -> None:
    for kept, key in ((cache(), None), (cache(most_bytes=0), "key"), (cache(most_entries=0), "key")):
        compiler = Compiler()
        assert [await compiled(kept, key, compiler) for _ in range(2)] == [False, False]
        assert all(bundle.closed for bundle in compiler.bundles)
        assert (kept.bytes, kept.misses) == (0, 0)


async def test_the_compilation_used_longest_ago_makes_room() -> None:
    kept, compiler = cache(most_bytes=4 * (KB + ENTRY_BYTES + 100)), Compiler()
    for name in ("a", "b", "c", "d", "a", "e"):
        await compiled(kept, name, compiler)
    assert kept.bytes <= kept.most_bytes
    assert await compiled(kept, "a", compiler)
    assert [bundle.closed for bundle in compiler.bundles] == [False, True, False, False, False]


async def test_there_are_at_most_as_many_as_descriptors_allow() -> None:
    kept, compiler = cache(most_entries=2), Compiler()
    for name in ("a", "b", "c"):
        await compiled(kept, name, compiler)
    assert len(kept) == 2
    assert [bundle.closed for bundle in compiler.bundles] == [True, False, False]


async def test_a_bundle_that_would_fill_the_cache_is_not_kept() -> None:
    kept, compiler = cache(most_bytes=64 * KB), Compiler(size=32 * KB)
    assert [await compiled(kept, "key", compiler) for _ in range(2)] == [False, False]
    assert [bundle.closed for bundle in compiler.bundles] == [True, True]


async def test_an_evicted_bundle_stays_open_until_its_last_use_ends() -> None:
    kept, compiler = cache(most_entries=1), Compiler()
    async with kept.compiled("a", compiler), kept.compiled("a", compiler) as second:
        await compiled(kept, "b", compiler)
        assert second.cached
        assert not compiler.bundles[0].closed
    assert compiler.bundles[0].closed


async def test_closing_frees_all_but_what_is_in_use() -> None:
    kept, compiler = cache(), Compiler()
    await compiled(kept, "a", compiler)
    async with kept.compiled("b", compiler):
        kept.close()
        assert [bundle.closed for bundle in compiler.bundles] == [True, False]
    assert [bundle.closed for bundle in compiler.bundles] == [True, True]
    assert kept.bytes == 0


# -- many at once


async def test_a_hundred_equal_requests_at_once_compile_once() -> None:
    kept, compiler = cache(), Compiler()
    compiler.go.clear()
    tasks = [asyncio.create_task(compiled(kept, "key", compiler)) for _ in range(100)]
    await until_asked(compiler)
    compiler.go.set()
    assert sorted(await asyncio.gather(*tasks)) == [False] + [True] * 99
    assert (compiler.calls, kept.hits, kept.misses) == (1, 99, 1)


async def test_when_the_one_that_compiles_is_cancelled_the_next_goes_on() -> None:
    kept, compiler = cache(), Compiler()
    compiler.go.clear()
    tasks = [asyncio.create_task(compiled(kept, "key", compiler)) for _ in range(5)]
    await until_asked(compiler)
    tasks[0].cancel()
    await until_asked(compiler, 2)
    compiler.go.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert sorted(results[1:]) == [False, True, True, True]  # type: ignore[type-var]
    assert compiler.calls == 2


async def test_one_that_waits_and_is_cancelled_disturbs_nobody() -> None:
    kept, compiler = cache(), Compiler()
    compiler.go.clear()
    tasks = [asyncio.create_task(compiled(kept, "key", compiler)) for _ in range(3)]
    await until_asked(compiler)
    tasks[1].cancel()
    compiler.go.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert (results[0], results[2], compiler.calls) == (False, True, 1)


@pytest.mark.parametrize("failing", ["error", "limit"])
async def test_when_the_one_that_compiles_fails_the_others_do_not_queue_behind_each_other(failing: str) -> None:
    """One after the other they would wait for as many time limits."""
    kept, first, others = cache(), Compiler(outcome=Outcome.WALL_TIME, exit_code=None), Compiler()
    if failing == "error":
        first.error = BackendLost("gone")
    first.go.clear()
    others.go.clear()
    leader = asyncio.create_task(compiled(kept, "key", first))
    await until_asked(first)
    tasks = [asyncio.create_task(compiled(kept, "key", others)) for _ in range(5)]
    first.go.set()
    await until_asked(others, 5)
    others.go.set()
    assert await asyncio.gather(*tasks) == [False] * 5
    if failing == "error":
        with pytest.raises(BackendLost):
            await leader
    else:
        assert not await leader
    assert await compiled(kept, "key", others)
    assert (len(kept), sum(not bundle.closed for bundle in others.bundles)) == (1, 1)


# -- for real


def runs_with(engine: Engine, kept: Compilations) -> Runs:
    return dataclasses.replace(engine.runs, compilations=kept)


async def run(runs: Runs, code: str, actor: Actor = ALICE, stdin: bytes = b"") -> RunResult:
    return await runs.run(actor, RunSpec(language="c", code=code, stdin=stdin))


ECHO = "#include <stdio.h>\nint main(void) { char line[80]; fputs(fgets(line, 80, stdin), stdout); }\n"


async def test_a_cached_program_runs_with_its_own_input_in_a_sandbox_of_its_own(engine: Engine) -> None:
    runs = runs_with(engine, cache(64 << 20))
    first = await run(runs, ECHO, stdin=b"one")
    second = await run(runs, ECHO, stdin=b"two")
    assert (first.compilation_cached, second.compilation_cached) == (False, True)
    assert (first.last.stdout, second.last.stdout) == (b"one", b"two")
    assert second.compilation == first.compilation
    assert second.compilation is not None
    assert second.compilation.usage.cpu_s > 0


async def test_a_program_may_be_changed_by_its_run_without_changing_the_cached_one(engine: Engine) -> None:
    code = '#include <stdio.h>\nint main(void) { return remove("main") || !fopen("main", "w"); }\n'
    runs = runs_with(engine, cache(64 << 20))
    results = [await run(runs, code) for _ in range(3)]
    assert [(result.last.exit_code, result.compilation_cached) for result in results] == [(0, i > 0) for i in range(3)]


async def test_errors_of_the_compiler_come_from_the_cache_as_they_were(engine: Engine) -> None:
    runs = runs_with(engine, cache())
    first, second = [await run(runs, "int main(void) { return x; }") for _ in range(2)]
    assert (first.compilation_cached, second.compilation_cached) == (False, True)
    assert second.process is None
    assert second.compilation == first.compilation
    assert b"undeclared" in second.last.stderr


async def test_another_actor_compiles_for_itself_unless_results_are_shared(engine: Engine) -> None:
    for shared in (False, True):
        runs = runs_with(engine, Compilations(most_bytes=64 << 20, most_entries=10, shared=shared))
        assert not (await run(runs, ECHO, ALICE, b"x")).compilation_cached
        assert (await run(runs, ECHO, BOB, b"x")).compilation_cached is shared


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("c", "#include <stdio.h>\nint main(void) { puts(__TIME__); }\n"),
        ("pascal", "begin writeln({$i %time%}); end.\n"),
    ],
)
async def test_a_program_that_asks_when_it_was_compiled_is_compiled_each_time(
    engine: Engine, language: str, code: str
) -> None:
    if not engine.languages.is_available(language):
        pytest.skip(f"{language} is not installed")
    runs = runs_with(engine, cache(64 << 20))
    results = [await runs.run(ALICE, RunSpec(language=language, code=code)) for _ in range(2)]
    assert [(result.last.succeeded, result.compilation_cached) for result in results] == [(True, False)] * 2


async def test_equal_programs_at_once_share_one_compilation(engine: Engine) -> None:
    runs = runs_with(engine, kept := cache(64 << 20))
    results = await asyncio.gather(*(run(runs, ECHO, stdin=str(n).encode()) for n in range(8)))
    assert [result.last.stdout for result in results] == [str(n).encode() for n in range(8)]
    assert (kept.hits, kept.misses) == (7, 1)
