"""A program begun from a template does what it does when started from nothing: each is run both ways and compared."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stockade.backends.native import launch
from tests.backends.conftest import UNENFORCED, ordinary_user_command
from tests.backends.templates import ENV, Both, Program, differences, programs

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not os.path.exists("/usr/bin/python3"), reason="there is no python3 in the image"),
]
WITHIN_S = 60.0


@pytest.fixture(scope="module")
async def both(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[Both]:
    async with Both(tmp_path_factory.mktemp("data")) as both:
        yield both


@pytest.mark.parametrize("program", programs(), ids=lambda program: program.name)
async def test_a_program_does_the_same_from_a_template(both: Both, program: Program) -> None:
    assert differences(await both.cold(program), await both.warm(program)) == []


@pytest.fixture(scope="module")
async def ordinary(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[Both]:
    """As an ordinary user has it: one user id for all, and no control groups."""
    argv = ordinary_user_command(tmp_path_factory.mktemp("package"))
    both = Both(tmp_path_factory.mktemp("data"), allow_unenforced=UNENFORCED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "command", lambda _options: argv)
        await both.backend.start()
    yield both
    await both.backend.close()


@pytest.mark.parametrize(
    "program", [p for p in programs() if p.name.startswith("start:")], ids=lambda program: program.name
)
async def test_it_does_so_for_ordinary_users_too(ordinary: Both, program: Program) -> None:
    assert differences(await ordinary.cold(program), await ordinary.warm(program)) == []


# ── any input ────────────────────────────────────────────────────────────────────────────────────────────────────────

TELL = """
import os, sys
print(ascii(sys.argv), ascii(sys.orig_argv), ascii(sys.path), ascii(sorted(os.environb.items())))
print(open("/proc/self/cmdline", "rb").read(), open("/proc/self/environ", "rb").read())
print(sys.stdin.buffer.read())
for folder, folders, files in sorted(os.walk(os.fsencode("."))):
    for name in sorted(files):
        path = os.path.join(folder, name)
        print(path, open(path, "rb").read(), oct(os.stat(path).st_mode))
"""
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
names = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=20)
environments = st.dictionaries(
    st.text(st.characters(exclude_characters="\0=", exclude_categories=["Cs"]), min_size=1, max_size=8)
    | st.sampled_from(["PYTHONPATH", "LANG", "LC_ALL", "PYTHONUTF8", "PYTHONHASHSEED", "PYTHONNOUSERSITE", "HOME"]),
    texts,
    max_size=5,
)


def telling(**members: object) -> Program:
    return Program(name="telling", code=TELL.encode(), **members)  # type: ignore[arg-type]


@given(
    args=st.lists(texts, max_size=5),
    stdin=st.binary(max_size=2000),
    files=st.dictionaries(
        names.filter(lambda name: name not in (".", "..", "main.py")), st.binary(max_size=200), max_size=4
    ),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_it_is_given_it_sees_the_same(
    both: Both, args: list[str], stdin: bytes, files: dict[str, bytes]
) -> None:
    files = {name: content for name, content in files.items() if len(name.encode()) < 200}
    program = telling(args=tuple(args), stdin=stdin, files=files)
    assert differences(await both.cold(program), await both.warm(program)) == []


@given(env=environments)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_whatever_its_environment_it_sees_the_same(
    tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]
) -> None:
    """Where the interpreter does not even start with it, the error is the same: there is no template then."""
    program = telling(env={**env, "PATH": ENV["PATH"]}, args=("x",))
    async with Both(tmp_path_factory.mktemp("data")) as both:
        cold = await both.cold(program)
        if cold.succeeded:
            await both.make_ready(program)
        assert differences(cold, await both.run_from_template(program)) == []


# ── what must not repeat ─────────────────────────────────────────────────────────────────────────────────────────────

DRAW = """
import hashlib, os, random, secrets, ssl, tempfile, uuid
print(random.random(), random.SystemRandom().random(), random.Random().random())
print(secrets.token_hex(), os.urandom(16), os.getrandom(16) if hasattr(os, "getrandom") else "")
print(uuid.uuid4(), tempfile.mktemp(), next(tempfile._get_candidate_names()))
print(uuid.uuid1().time, uuid.uuid1().clock_seq if hasattr(uuid, "_generate_time_safe") is None else "")
print(ssl.RAND_bytes(16), id(object) and tempfile.mkdtemp())
"""
DRAW_NUMPY = """
import numpy
print(numpy.random.rand(), numpy.random.default_rng().random(), numpy.random.RandomState().rand())
print(numpy.random.randint(1 << 60), numpy.random.get_state()[1][:5])
"""


@pytest.mark.parametrize(
    ("preload", "code"),
    [
        ((), DRAW),
        (("random", "secrets", "ssl", "uuid", "tempfile", "hashlib", "multiprocessing.connection"), DRAW),
        (("numpy", "random"), DRAW_NUMPY),
    ],
    ids=["nothing preloaded", "the standard library's", "numpy"],
)
async def test_no_two_runs_draw_the_same(both: Both, preload: tuple[str, ...], code: str) -> None:
    if "numpy" in code and not installed("numpy"):
        pytest.skip("python3-numpy is not installed")
    program = Program(name="draws", code=code.encode(), preload=preload)
    results = [await both.warm(program) for _ in range(4)]
    assert all(result.succeeded for result in results), results[0].stderr
    lines = [line for result in results for line in result.stdout.splitlines()]
    assert len(lines) == len(set(lines)) == 4 * len(code.strip().splitlines()[1:])


async def test_hashes_of_texts_do_repeat_as_the_page_on_isolation_says(both: Both) -> None:
    program = Program(name="hashes", code=b"print(hash('x'))")
    assert len({(await both.warm(program)).stdout for _ in range(3)}) == 1
    assert len({(await both.cold(program)).stdout for _ in range(3)}) == 3


# ── preloaded modules ────────────────────────────────────────────────────────────────────────────────────────────────


def installed(package: str) -> bool:
    return os.path.isdir(f"/usr/lib/python3/dist-packages/{package}")


SCIENCE = """
import sys
print([name in sys.modules for name in ("numpy", "pandas")])
import numpy, pandas
a = numpy.arange(1_000_000, dtype=float).reshape(1000, 1000) % 7
print((a @ a).trace(), numpy.linalg.det(a[:50, :50] + numpy.eye(50)) != 0, numpy.fft.fft([1, 0]).tolist())
print(pandas.DataFrame({"a": [1, 2, 2], "b": [1.5, None, 3]}).groupby("a").sum().to_csv())
print(pandas.Timestamp("2024-02-29").tz_localize("Europe/Berlin"), pandas.Series([3, 1]).sort_values().index.tolist())
numpy.random.seed(5); print(numpy.random.rand())
import threading; print(threading.main_thread() is threading.current_thread(), threading.active_count())
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(2) as pool: print(list(pool.map(lambda n: float((a[n:, n:] @ a[n:, n:]).sum()), range(4))))
import multiprocessing
if __name__ == "__main__":
    with multiprocessing.Pool(2) as pool: print(pool.map(numpy.sqrt, [1, 4, 9]))
print(sorted(name for name in sys.modules if name.startswith("numpy.l")))
1 / 0
"""


async def test_preloaded_libraries_work_as_those_that_are_imported(both: Both) -> None:
    if not installed("numpy") or not installed("pandas"):
        pytest.skip("python3-numpy and python3-pandas are not installed")
    program = Program(name="science", code=SCIENCE.encode(), preload=("numpy", "pandas"), files={"x": b""})
    cold, warm = await both.cold(program), await both.warm(program)
    assert warm.stdout.startswith(b"[True, True]\n")
    assert cold.stdout.startswith(b"[False, False]\n")
    assert [line for line in differences(cold, warm) if "out [" not in line and "@@" not in line][2:] == []


MODULES = {
    "keeps_a_thread": "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()",
    "keeps_shared_memory": "import mmap\nmemory = mmap.mmap(-1, 4096)",
    "keeps_a_descriptor": "file = open('/etc/passwd')",
    "raises": "raise ValueError('not today')",
    "exits": "raise SystemExit(0)",
    "exits_at_once": "import os\nos._exit(0)",
    "dies": "import os\nos.kill(os.getpid(), 9)",
    "closes_everything": "import os\nos.closerange(0, 100)",
    "speaks_for_us": "import os\nos.write(3, b'{\"ready\":true,\"pid\":1}')\nos.write(3, b'{]')",
    "waits": "import time\ntime.sleep(1000)",
    "forks": "import os, time\nif os.fork() == 0: time.sleep(1000)",
    "fine": "value = 1",
}


@pytest.fixture(scope="module")
def library() -> Iterator[Path]:
    """A directory that the image shows, with modules to preload; not below /tmp, which a sandbox has of its own."""
    directory = Path(tempfile.mkdtemp(prefix="stockade-test-", dir="/var/tmp"))
    directory.chmod(0o755)
    for name, text in MODULES.items():
        (directory / f"{name}.py").write_text(text)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
async def with_library(
    library: Path, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[Both]:
    async with Both(tmp_path_factory.mktemp("data"), host_paths=(str(library),)) as both:
        yield both


@pytest.mark.parametrize("module", [*sorted(MODULES.keys() - {"fine"}), "no_such_module", "no.such.module"])
async def test_a_module_that_cannot_be_preloaded_leaves_runs_as_they_are(
    with_library: Both, library: Path, module: str
) -> None:
    """They start from nothing; nothing waits, nothing is lost."""
    env = {**ENV, "PYTHONPATH": str(library)}
    program = Program(
        name=module, code=b"import gc; print(gc.get_freeze_count(), input())", stdin=b"x\n", env=env, preload=(module,)
    )
    await with_library.announce(program)
    for _ in range(6):
        result = await with_library.run_from_template(program)
        assert (result.stdout, result.stderr, result.exit_code) == (b"0 x\n", b"", 0)
        await anyio.sleep(0.02)
    others = Program(name="fine", code=b"import fine; print(fine.value)", env=env, preload=("fine",))
    assert (await with_library.warm(others)).stdout == b"1\n"


async def test_a_template_is_replaced_when_its_image_changes(with_library: Both, library: Path) -> None:
    def put(value: int) -> None:
        (library / "new").write_text(f"value = {value}")
        (library / "new").rename(library / "changing.py")

    put(1)
    env = {**ENV, "PYTHONPATH": str(library)}
    program = Program(name="changing", code=b"import changing; print(changing.value)", env=env, preload=("changing",))
    assert (await with_library.warm(program)).stdout == b"1\n"
    put(2)
    with anyio.fail_after(WITHIN_S):
        while (result := await with_library.warm(program)).stdout != b"2\n":
            assert result.stdout == b"1\n"
            await anyio.sleep(0.05)
    assert await with_library.is_from_template(program)
