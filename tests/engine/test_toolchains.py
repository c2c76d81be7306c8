"""Caches of toolchains: what decides that one is used, and that programs come out the same with and without."""

import asyncio
import dataclasses
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest

from stockade.app.engine import build_engine
from stockade.backends.base import SandboxSpec
from stockade.config import Config, SandboxConfig
from stockade.engine import Engine, Language, Languages, LimitPolicy, Runs, Toolchains
from stockade.engine.language_files import read_language
from stockade.engine.languages import RECHECK_S
from stockade.engine.runs import WORK_DIR
from stockade.engine.toolchains import identity
from stockade.errors import BackendLost, Invalid
from stockade.model import Actor, Bundle, LimitOverrides, Outcome, ProcessResult, ProcessSpec, RunResult, RunSpec, Usage

pytestmark = pytest.mark.anyio

TOY = """
name = "toy"
display_name = "Toy"
main_file = "main.toy"
requires = ["toy"]

[compile]
argv = ["toy", "{main}"]
env.LEVEL = "2"

[cache]
fill = ["toy", "--fill", "{cache}"]
compile = ["toy", "--cache={cache}", "{main}", "{memory_mb*50%}"]
limits.memory_mb = 7
files = { "fill.txt" = "x" }

[run]
argv = ["./main"]

[examples.hello]
code = "hello"
"""


def toy(text: str = TOY) -> Language:
    return read_language(text, source="toy.toml", name="toy")[0]


class FakeBundle:
    size = 1

    def close(self) -> None:
        pass


class FakeStore:
    """Remembers names; `path` is below /cache."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def path(self, name: str) -> str:
        return f"/cache/{name}"

    def has(self, name: str) -> bool:
        return name in self.names

    def use(self, name: str) -> None:
        assert name in self.names

    def put(self, name: str, bundle: Bundle) -> None:
        self.names.add(name)


class FakeSandboxes:
    """Records what is run; commands that hold the word `fails` do."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.seen: list[tuple[SandboxSpec, ProcessSpec]] = []
        self.error: Exception | None = None

    async def run(self, sandbox: SandboxSpec, process: ProcessSpec, *, watched: object = None) -> ProcessResult:
        self.seen.append((sandbox, process))
        if self.error is not None:
            raise self.error
        fails = bool(self.fails) and any(self.fails in word for word in process.argv)
        return ProcessResult(
            outcome=Outcome.EXITED,
            exit_code=int(fails),
            signal=None,
            stdout=b"",
            stderr=b"",
            stdout_truncated=False,
            stderr_truncated=False,
            usage=Usage(wall_s=0.1, cpu_user_s=0.1, cpu_system_s=0.0, memory_peak_bytes=1),
            bundle=FakeBundle() if process.collect and not fails else None,
        )


def toolchains(store: FakeStore | None, sandboxes: FakeSandboxes, now: list[float] | None = None) -> Toolchains:
    limits = LimitPolicy(defaults=SandboxConfig().defaults, maximum=SandboxConfig().maximum)
    clock = now or [0.0]
    return Toolchains(store=store, limits=limits, run=sandboxes.run, work_dir="/code", clock=lambda: clock[0])


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


# -- the language file


def test_the_commands_of_a_cache_run_in_the_environment_of_the_compile_step() -> None:
    cache = toy().cache
    assert cache is not None
    assert cache.fill.env == cache.compile.env == {"LEVEL": "2"}
    assert cache.compile.with_cache("/c").argv == ("toy", "--cache=/c", "main.toy", "{memory_mb*50%}")
    assert (cache.files, cache.limits.memory_bytes) == ({"fill.txt": b"x"}, 7 << 20)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('argv = ["toy", "{main}"]', 'argv = ["toy", "{cache}"]', "compile.argv"),
        ('LEVEL = "2"', 'LEVEL = "{cache}"', "compile.env.LEVEL"),
        ('fill = ["toy", "--fill", "{cache}"]', "fill = []", "cache.fill"),
        ('fill = ["toy", "--fill", "{cache}"]', "", "cache.fill"),
        ('"--fill"', '"{args}"', "cache.fill"),
        ('"fill.txt"', '"../fill.txt"', "cache.files"),
        ("limits.memory_mb = 7", "limits.memory_mb = 0", "cache.limits.memory_mb"),
        ("limits.memory_mb = 7", "colour = 7", "cache.colour"),
        ('[compile]\nargv = ["toy", "{main}"]\nenv.LEVEL = "2"', "", "cache"),
        ('env.LEVEL = "2"', "uncached = [5]", "compile.uncached"),
        ('env.LEVEL = "2"', 'uncached = [""]', "compile.uncached"),
    ],
)
def test_a_wrong_cache_is_refused_by_its_key(old: str, new: str, key: str) -> None:
    assert old in TOY
    with pytest.raises(Invalid, match=rf"toy\.toml: {key}: "):
        toy(TOY.replace(old, new, 1))


# -- which toolchain


def test_the_identity_is_another_after_any_change_to_a_command(tmp_path: Path) -> None:
    compiler = tmp_path / "toy"
    language = dataclasses.replace(toy(), requires=(str(compiler),))
    seen = [identity(language)]
    compiler.write_text("1")
    seen.append(identity(language))
    compiler.write_text("22")
    seen.append(identity(language))
    os.utime(compiler, ns=(0, 5))
    seen.append(identity(language))
    compiler.rename(tmp_path / "elsewhere")
    compiler.symlink_to("elsewhere")
    seen.append(identity(language))
    assert len(set(seen)) == len(seen)
    assert identity(language) == seen[-1]


def test_a_change_is_seen_within_seconds(tmp_path: Path) -> None:
    compiler, now = tmp_path / "toy", [0.0]
    language = dataclasses.replace(toy(), requires=(str(compiler),))
    known = toolchains(None, FakeSandboxes(), now)
    before = known.identity(language)
    compiler.write_text("1")
    assert known.identity(language) == before
    now[0] += RECHECK_S
    assert known.identity(language) != before


# -- when it is used


async def test_the_plain_step_is_in_force_until_the_cache_is_there() -> None:
    store, sandboxes, language = FakeStore(), FakeSandboxes(), toy()
    known = toolchains(store, sandboxes)
    assert known.compile_step(language) == language.compile
    assert await known.fill(language)
    [name] = store.names
    step = known.compile_step(language)
    assert step is not None
    assert step.argv[:2] == ("toy", f"--cache=/cache/{name}")
    (filling, fill), _, (_, example) = sandboxes.seen
    assert (fill.argv, fill.files, fill.cwd) == (("toy", "--fill", f"/cache/{name}"), {"fill.txt": b"x"}, "/code")
    assert filling.limits.memory_bytes == 7 << 20
    assert example.files == {"main.toy": b"hello"}


async def test_a_cache_that_was_cleared_away_is_not_used() -> None:
    store, language = FakeStore(), toy()
    known = toolchains(store, FakeSandboxes())
    await known.fill(language)
    store.names.clear()
    assert known.compile_step(language) == language.compile


async def test_another_toolchain_gets_another_cache(tmp_path: Path) -> None:
    compiler, now, store = tmp_path / "toy", [0.0], FakeStore()
    language = dataclasses.replace(toy(), requires=(str(compiler),))
    known = toolchains(store, FakeSandboxes(), now)
    assert await known.fill(language)
    compiler.write_text("new")
    now[0] += RECHECK_S
    assert known.compile_step(language) == language.compile
    assert await known.fill(language)
    assert len(store.names) == 2


@pytest.mark.parametrize("fails", ["--fill", "test", "--cache"])
async def test_a_cache_that_cannot_be_made_or_seen_or_used_is_given_up(fails: str) -> None:
    language, sandboxes = toy(), FakeSandboxes(fails)
    known = toolchains(FakeStore(), sandboxes)
    assert not await known.fill(language)
    assert known.compile_step(language) == language.compile


async def test_caches_are_made_in_the_background_when_they_are_asked_for() -> None:
    store, sandboxes, language = FakeStore(), FakeSandboxes(), toy()
    known = toolchains(store, sandboxes)
    task = asyncio.create_task(known.keep_filled())
    await until(lambda: known.compile_step(language) != language.compile)
    task.cancel()
    await asyncio.wait([task])
    assert len(sandboxes.seen) == 3


async def test_a_lost_warden_does_not_end_the_background_task() -> None:
    store, sandboxes = FakeStore(), FakeSandboxes()
    sandboxes.error = BackendLost("gone")
    known = toolchains(store, sandboxes)
    task = asyncio.create_task(known.keep_filled())
    known.compile_step(toy())
    other = dataclasses.replace(toy(), name="other")
    await until(lambda: bool(sandboxes.seen))
    sandboxes.error = None
    await until(lambda: known.compile_step(other) != other.compile)
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


async def test_without_a_store_or_a_cache_the_plain_step_is_in_force() -> None:
    sandboxes, language = FakeSandboxes(), toy()
    without = dataclasses.replace(language, cache=None)
    assert toolchains(None, sandboxes).compile_step(language) == language.compile
    assert not await toolchains(None, sandboxes).fill(language)
    assert toolchains(FakeStore(), sandboxes).compile_step(without) == language.compile
    assert not sandboxes.seen


# -- for real


@pytest.fixture(scope="module")
async def cached(config: Config) -> AsyncIterator[Engine]:
    """An engine whose caches can be shown: its data directory does not lie below /tmp."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        async with build_engine(dataclasses.replace(config, data_dir=Path(directory)), embedded=True) as engine:
            yield engine


WITH_CACHE = [language.name for language in Languages.load().all() if language.cache is not None]


async def filled(engine: Engine, name: str) -> Language:
    if not engine.languages.is_available(name):
        pytest.skip(f"{name} is not installed")
    language = engine.languages.find(name)
    if language.cache is None:
        pytest.skip(f"{name} has no cache in the variant that is installed")
    assert await engine.toolchains.fill(language)
    return language


def plain(engine: Engine) -> Runs:
    """The same without any cache."""
    none = Toolchains(store=None, limits=engine.limits, run=engine.runs.backend.run, work_dir=WORK_DIR)
    return dataclasses.replace(engine.runs, toolchains=none)


def seen_by_a_user(result: RunResult) -> list[object]:
    parts = [part for part in (result.compilation, result.process) if part is not None]
    return [(p.outcome, p.exit_code, p.signal, p.stdout.decode(), p.stderr.decode()) for p in parts]


async def assert_same(engine: Engine, name: str, code: str) -> RunResult:
    await filled(engine, name)
    spec = RunSpec(language=name, code=code)
    with_cache, without = await asyncio.gather(
        *(runs.run(Actor(id="test"), spec) for runs in (engine.runs, plain(engine)))
    )
    assert seen_by_a_user(with_cache) == seen_by_a_user(without)
    return with_cache


@pytest.mark.parametrize("name", WITH_CACHE)
async def test_every_example_comes_out_the_same_with_the_cache(cached: Engine, name: str) -> None:
    language = await filled(cached, name)
    for example in language.examples.values():
        await assert_same(cached, name, example.code)


async def in_sandbox(
    engine: Engine, language: Language, argv: tuple[str, ...], code: str, env: Mapping[str, str]
) -> ProcessResult:
    step = engine.toolchains.compile_step(language)
    assert step is not None
    limits = engine.limits.resolve(language.compile_limits, LimitOverrides())
    process = ProcessSpec(
        argv=argv or step.command(limits),
        cwd=WORK_DIR,
        env={**language.environment(step, limits), **env},
        files={language.main_file: code.encode()},
    )
    return await engine.runs.backend.run(SandboxSpec(image=language.image, limits=limits), process)


async def test_a_small_go_program_is_compiled_without_go_build(cached: Engine) -> None:
    language = await filled(cached, "go")
    broken = {"GOCACHE": "/proc/no-such-directory"}  # go build needs one
    code = 'package main\nimport ("fmt"; "net/http")\nfunc main() { fmt.Println(http.StatusOK) }\n'
    assert (await in_sandbox(cached, language, (), code, broken)).succeeded
    assert not (await in_sandbox(cached, language, (), "//go:build linux\n\n" + code, broken)).succeeded


GO: dict[str, str] = {
    "a panic": 'import "errors"\nfunc f(n int) { if n == 0 { panic(errors.New("x")) }; f(n - 1) }\n'
    "func main() { f(3) }",
    "build information": 'import ("fmt"; "runtime/debug")\nfunc main() { fmt.Println(debug.ReadBuildInfo()) }',
    "its own path": 'import ("fmt"; "runtime")\nfunc main() { fmt.Println(runtime.Caller(0), runtime.GOROOT()) }',
    "network packages": 'import ("fmt"; "net/http"; "os/user")\n'
    "func main() { u, e := user.Current(); fmt.Println(u, e, http.StatusOK) }",
    "goroutines": 'import "sync"\nfunc main() { var w sync.WaitGroup; w.Add(1); go w.Done(); w.Wait(); println(1) }',
    "a deadlock": "func main() { <-make(chan int) }",
    "unsafe": 'import "unsafe"\nfunc main() { println(unsafe.Sizeof(1)) }',
    "generics": "func f[T any](x T) T { return x }\nfunc main() { println(f(1), f(`a`)) }",
    "an unused import": 'import "fmt"\nfunc main() {}',
    "an unused variable": "func main() { x := 1 }",
    "an unknown package": 'import "nonexistent/thing"\nfunc main() {}',
    "a package with a host": 'import "github.com/a/b"\nfunc main() { b.X() }',
    "an internal package": 'import "internal/cpu"\nfunc main() { println(cpu.CacheLineSize) }',
    "a nested internal package": 'import "runtime/internal/sys"\nfunc main() { println(sys.PtrSize) }',
    "a vendored package": 'import "golang.org/x/net/http/httpguts"\nfunc main() { httpguts.ValidHostHeader("x") }',
    "a vendor path": 'import "vendor/golang.org/x/net/http/httpguts"\nfunc main() { httpguts.ValidHostHeader("x") }',
    "the go command's own": 'import "cmd/internal/objabi"\nfunc main() { println(objabi.HEAD) }',
    "C": 'import "C"\nfunc main() {}',
    "runtime/cgo": 'import _ "runtime/cgo"\nfunc main() {}',
    "a relative import": 'import "./x"\nfunc main() { x.X() }',
    "an absolute import": 'import "/etc"\nfunc main() { etc.X() }',
    "itself": 'import "main"\nfunc main() {}',
    "no main": 'import "fmt"\nfunc Main() { fmt.Println() }',
    "a function without a body": "func f()\nfunc main() { f() }",
    "a linkname": 'import _ "unsafe"\n//go:linkname nanotime runtime.nanotime\nfunc nanotime() int64\n'
    "func main() { println(nanotime() > 0) }",
    "a directive": "//go:noinline\nfunc f() int { return 1 }\nfunc main() { println(f()) }",
    "an embedded file": 'import _ "embed"\n//go:embed main.go\nvar s string\nfunc main() { print(s) }',
    "an embedding without the package": "//go:embed main.go\nvar s string\nfunc main() { print(s) }",
    "a line directive": 'func main() {\n//line other.go:7\n  panic("x") }',
    "many errors": "func main() {\n" + "\n".join(f"  x{n}()" for n in range(20)) + "\n}",
    "a syntax error": "func main( {",
}  # fmt: skip

WHOLE_GO = {
    "another package": 'package foo\nfunc main() { println("x") }\n',
    "a tag for another system": '//go:build windows\n\npackage main\nfunc main() { println("x") }\n',
    "an old tag": '// +build ignore\n\npackage main\nfunc main() { println("x") }\n',
    "an import comment": 'package main // import "elsewhere"\nfunc main() { println("x") }\n',
    "a byte order mark": '\ufeffpackage main\nfunc main() { println("x") }\n',
    "a NUL": 'package main\nfunc main() { println("\0") }\n',
    "nothing": "",
    "no package": "func main() {}\n",
}


@pytest.mark.parametrize("what", [*GO, *WHOLE_GO])
async def test_go_says_and_does_the_same_with_the_cache(cached: Engine, what: str) -> None:
    await assert_same(cached, "go", WHOLE_GO.get(what) or f"package main\n\n{GO.get(what, '')}\n")


BITS, STREAM = "#include <bits/stdc++.h>\n", "#include <iostream>\n"
SORT = (
    "using namespace std;\n"
    "int main() { vector<int> v{3, 1, 2}; sort(v.begin(), v.end()); for (int x : v) cout << x; }\n"
)
SAY = "int main() { std::cout << __LINE__ << __FILE__ << __COUNTER__ << std::endl; }\n"

CPP = {
    "everything": BITS + SORT,
    "everything in quotes": '#include "bits/stdc++.h"\n' + SORT,
    "everything twice": BITS + BITS + SORT,
    "everything after a stream": STREAM + BITS + SORT,
    "a stream after everything": BITS + STREAM + SORT,
    "a stream": STREAM + SAY,
    "a stream twice": STREAM + STREAM + SAY,
    "a stream after something": "#include <vector>\n" + STREAM + SAY,
    "a stream and more": STREAM + "#include <sstream>\n#include <fstream>\n#include <algorithm>\n" + SAY,
    "a comment before": "/* a\n   b */\n// c\n\n" + BITS + SAY,
    "a definition before": "#define ll long long\n" + BITS + SAY,
    "a definition that matters before": "#define _GLIBCXX_DEBUG\n"
    + BITS
    + "int main() { std::cout << sizeof(std::vector<int>); }\n",
    "assertions off": "#define NDEBUG\n" + BITS + "int main() { assert(0); }\n",
    "assertions on": BITS + "int main() { assert(0); }\n",
    "a keyword redefined": "#define int long long\n" + STREAM + "signed main() { std::cout << sizeof(int); }\n",
    "optimisation asked for before": '#pragma GCC optimize("Ofast,unroll-loops")\n' + BITS + SORT,
    "optimisation asked for after": BITS + '#pragma GCC optimize("O3,unroll-loops")\n' + SORT,
    "packing before": "#pragma pack(1)\n" + BITS + "int main() { std::cout << sizeof(std::pair<char, int>); }\n",
    "a declaration before": "int before;\n" + STREAM + SAY,
    "a condition around": "#if 0\n" + BITS + "#else\n" + STREAM + "#endif\n" + SAY,
    "in a comment": "/*\n" + BITS + "*/\n" + STREAM + SAY,
    "in a string": 'const char *s = R"(\n' + BITS + ')";\n#include <cstdio>\nint main() { puts(s); }\n',
    "an unknown member": BITS + "int main() { std::vector<int> v; v.push_bak(1); }\n",
    "errors inside headers": "// x\n"
    + BITS
    + "struct A {}; int main() { std::set<A> s; s.insert(A{}); std::cout << A{}; }\n",
    "errors inside a stream's header": STREAM + "struct A {}; int main() { std::cout << A{}; }\n",
    "a warning": BITS + "#warning look\n" + SAY,
    "a missing header": BITS + "#include <nope.h>\n" + SAY,
    "no main": STREAM,
    "a syntax error": BITS + "int main({",
    "an exception": BITS + 'int main() { throw std::runtime_error("x"); }\n',
}


@pytest.mark.parametrize("what", CPP)
async def test_cpp_says_and_does_the_same_with_the_cache(cached: Engine, what: str) -> None:
    await assert_same(cached, "cpp", CPP[what])


@pytest.mark.parametrize(("directory", "code"), [("stdc++.h", BITS + SORT), ("iostream", STREAM + SAY)])
async def test_the_precompiled_headers_fit_the_compiler(cached: Engine, directory: str, code: str) -> None:
    language = await filled(cached, "cpp")
    step = cached.toolchains.compile_step(language)
    assert step is not None
    headers = step.argv[1].replace("build.sh", directory)
    argv = ("g++", "-std=gnu++17", "-O2", "-H", "-fsyntax-only", "-isystem", headers, "main.cpp")
    result = await in_sandbox(cached, language, argv, code, {})
    assert result.stderr.startswith(b"! " + headers.encode()), "`!` marks one that is used (gcc(1), -H)"


async def test_a_sandbox_cannot_write_to_a_cache(cached: Engine) -> None:
    language = await filled(cached, "cpp")
    step = cached.toolchains.compile_step(language)
    assert step is not None
    directory = str(Path(step.argv[1]).parent)
    script = (
        f"test -f {directory}/build.sh && ! touch {directory}/x 2>/dev/null && ! rm -f {directory}/build.sh 2>/dev/null"
    )
    assert (await in_sandbox(cached, language, ("sh", "-c", script), "", {})).succeeded
