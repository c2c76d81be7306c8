"""The library in a program: what it prints, leaves, keeps, and does after a fork."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.app.serving import ALLOW_AS_USER, environment
from tests.embedded.conftest import freezes

WITHIN_S = 100


def _run(program: str, folder: Path, *, status: int = 0) -> str:
    """What a program prints that uses the library; nothing on standard error."""
    more = {"TMPDIR": str(folder)}
    if os.geteuid():
        more["STOCKADE_SANDBOX_ALLOW_UNENFORCED"] = f"{ALLOW_AS_USER},disk_size"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(**more), capture_output=True, text=True, timeout=WITHIN_S
    )
    assert (done.returncode, done.stderr) == (status, ""), done.stderr
    return done.stdout


def _examples(call: str, folder: Path, *, least: int) -> None:
    """Run the examples that a call of doctest's finds, in a program of their own, as a reader would: here, other tests
    may have said where events are to be printed.
    """
    program = f"""
import doctest, os, stockade.embedded
from stockade.embedded import asynchronous, records, synchronous
os.chdir({str(folder)!r})
found = doctest.{call}
assert found.attempted >= {least}, found
raise SystemExit(found.failed)
"""
    assert _run(program, folder) == ""


@freezes
@pytest.mark.parametrize("module", ["records", "synchronous", "asynchronous"])
def test_examples_in_docstrings_do_what_they_say(module: str, tmp_path: Path) -> None:
    _examples(f"testmod({module})", tmp_path, least=1)


@freezes
def test_examples_of_the_page_do_what_they_say(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "library.md"
    _examples(f"testfile({str(page)!r}, module_relative=False)", tmp_path, least=11)


def test_importing_it_is_cheap() -> None:
    heavy = "{'sqlalchemy', 'fastapi', 'httpx', 'pydantic', 'stockade.engine', 'stockade.app'}"
    program = f"import sys\nfrom stockade import Sandbox, AsyncSandbox\nprint({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=WITHIN_S, check=True)
    assert done.stdout == "set()\n"


def test_nothing_is_printed_and_nothing_left_by_a_program_that_just_ends(tmp_path: Path) -> None:
    program = (
        "from stockade import Sandbox\nbox = Sandbox()\nbox.exec('sleep', '600')\nprint(box.run('print(1)').stdout)"
    )
    assert _run(program, tmp_path) == "1\n\n"
    assert list(tmp_path.iterdir()) == []


@freezes
def test_a_data_directory_keeps_what_has_a_name_for_the_next_program(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    making = f"""
from stockade import Sandbox
box = Sandbox(name="dev", data_dir={str(folder)!r})
box.files.write("note", "yes")
box.snapshot("first")
passing = Sandbox(data_dir={str(folder)!r})
"""
    _run(making, tmp_path)
    finding = f"""
from stockade import Sandbox
from stockade.errors import Conflict
print([one.name for one in Sandbox.list(data_dir={str(folder)!r})])
with Sandbox.find("dev", data_dir={str(folder)!r}) as box:
    print(box.files.read_text("note"), [one.name for one in box.snapshots()])
import subprocess, sys
other = "from stockade import Sandbox; Sandbox(data_dir={str(folder)!r})"
print(subprocess.run([sys.executable, "-c", other], capture_output=True, text=True).stderr.splitlines()[-1])
"""
    names, told, refused, *_ = _run(finding, tmp_path).splitlines()
    assert (names, told) == ("['dev']", "yes ['first']")
    assert "Conflict: process" in refused
    assert "uses the data directory" in refused


def test_a_fork_is_told_whose_a_sandbox_is_and_has_its_own(tmp_path: Path) -> None:
    program = """
import os
from stockade import Sandbox
from stockade.errors import Conflict
box = Sandbox()
child = os.fork()
if not child:
    try:
        box.run("print(1)")
    except Conflict as error:
        print("fork" in str(error), flush=True)
    with Sandbox() as own:
        print(own.run("print('own')").stdout, end="", flush=True)
    raise SystemExit(0)
assert os.waitpid(child, 0)[1] == 0
print(box.run("print('still')").stdout, end="")
"""
    assert _run(program, tmp_path) == "True\nown\nstill\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.environ.get("STOCKADE_LONG_TESTS"), reason="starts two engines: STOCKADE_LONG_TESTS=1")
def test_what_a_killed_program_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    program = "import os, signal\nfrom stockade import Sandbox\nSandbox()\nos.kill(os.getpid(), signal.SIGKILL)"
    _run(program, tmp_path, status=-signal.SIGKILL)
    assert list(tmp_path.glob("stockade-library-*"))
    _run("from stockade import Sandbox\nSandbox()", tmp_path)
    assert not list(tmp_path.glob("stockade-library-*"))
