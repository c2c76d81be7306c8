"""What can be done with a sandbox, wherever it is."""

import gc
import secrets
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from stockade import ProgramFailed, Sandbox
from stockade.errors import Conflict, Invalid, NoAnswer, NotFound, Unavailable, UnknownLanguage
from stockade.model import BoxState, FileKind, Outcome
from tests.embedded.conftest import Where, freezes

WITHIN_S = 60.0


@pytest.fixture
def box(where: Where) -> Iterator[Sandbox]:
    with Sandbox(memory="256M", **where) as box:
        yield box


def test_a_program_is_run_and_told_of(box: Sandbox) -> None:
    result = box.run("import sys; print(6 * 7); print('!', file=sys.stderr)")
    assert (result.stdout, result.stderr, result.exit_code, result.outcome) == ("42\n", "!\n", 0, Outcome.EXITED)
    assert result.ok
    assert result.check() is result


def test_a_program_that_fails_is_no_error_unless_it_is_to_be_one(box: Sandbox) -> None:
    failed = box.run("raise SystemExit(3)")
    assert (failed.exit_code, failed.outcome, failed.ok) == (3, Outcome.EXITED, False)
    with pytest.raises(ProgramFailed, match=r"exited with 1: (?s:.*)ZeroDivisionError") as caught:
        box.run("1 / 0", check=True)
    assert caught.value.result.exit_code == 1


def test_a_program_gets_its_input_arguments_and_environment(where: Where) -> None:
    with Sandbox(env={"A": "1", "B": "2"}, **where) as box:
        result = box.run('read x; echo "$x $1 $A $B"', "bash", args=["a b"], stdin="in\n", env={"B": "3"})
        assert result.stdout == "in a b 1 3\n"


def test_a_program_finds_what_is_in_the_working_directory_and_leaves_nothing_of_its_own(box: Sandbox) -> None:
    box.files.write("helper.py", "answer = 42")
    assert box.run("import helper; print(helper.answer)", env={"PYTHONDONTWRITEBYTECODE": "1"}).stdout == "42\n"
    assert [one.name for one in box.files.list()] == ["helper.py"]


def test_what_is_compiled_is_run_or_told_why_not(box: Sandbox) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    assert box.run('#include <stdio.h>\nint main(){puts("hi");return 3;}', "c").stdout == "hi\n"
    broken = box.run("int main({", "c")
    assert (broken.step, broken.ok, bool(broken.exit_code)) == ("compile", False, True)
    assert not [one.name for one in box.files.list("/tmp") if one.name.startswith("run-")]


def test_a_language_that_nobody_knows_is_refused(box: Sandbox) -> None:
    with pytest.raises(UnknownLanguage, match="klingon"):
        box.run("", "klingon")


def test_a_program_that_takes_too_long_is_killed(where: Where) -> None:
    with Sandbox(timeout=0.3, **where) as box:
        result = box.run("import time; time.sleep(60)")
        assert (result.outcome, result.exit_code, result.ok) == (Outcome.WALL_TIME, 137, False)
        assert box.exec("sleep", "60").collect().outcome is Outcome.WALL_TIME
        assert box.exec("sleep", "60", timeout=600).collect(timeout=0.2).outcome is Outcome.WALL_TIME


def test_a_program_that_prints_too_much_is_killed(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockade.embedded.synchronous.MOST_OUTPUT_BYTES", 1 << 20)
    result = box.run("yes", "bash")
    assert (result.outcome, result.is_truncated, len(result.stdout_bytes)) == (Outcome.OUTPUT, True, 1 << 20)


def test_a_process_is_read_as_it_prints_and_written_to(box: Sandbox) -> None:
    with box.exec("sh", "-c", "echo ready; read x; echo $x; cat >&2; exit 3", stdin=True) as process:
        first = process.read(timeout=WITHIN_S)
        assert first is not None
        assert (first.stream, first.text) == ("stdout", "ready\n")
        assert process.exit_code is None
        assert process.write("one\ntwo\n")
        process.close_stdin()
        rest = {chunk.stream: chunk.data for chunk in process}
    assert rest == {"stdout": b"one\n", "stderr": b"two\n"}
    assert process.exit_code == 3


def test_output_is_passed_on_byte_by_byte(box: Sandbox) -> None:
    content = secrets.token_bytes(300_000)
    assert box.exec("cat", stdin=content).collect().stdout_bytes == content


def test_a_process_without_input_sees_its_end(box: Sandbox) -> None:
    assert box.exec("cat").wait(timeout=WITHIN_S) == 0
    assert box.exec("cat", stdin=b"").wait(timeout=WITHIN_S) == 0


def test_a_process_can_be_waited_for_in_vain_and_then_killed(box: Sandbox) -> None:
    process = box.exec("sh", "-c", "echo begun; sleep 600")
    with pytest.raises(NoAnswer):
        process.wait(timeout=0.2)
    process.kill()
    assert process.wait(timeout=WITHIN_S) == 137


def test_a_signal_reaches_the_process(box: Sandbox) -> None:
    with box.exec("sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done") as process:
        process.read(timeout=WITHIN_S)
        process.send_signal(15)
        assert process.wait(timeout=WITHIN_S) == 7


def test_a_process_can_have_a_terminal_a_directory_and_a_user(box: Sandbox) -> None:
    assert box.exec("stty", "size", terminal=(43, 117)).collect(timeout=WITHIN_S).stdout == "43 117\r\n"
    assert box.exec("sh", "-c", "pwd; id -u", cwd="/tmp", user="root").collect().stdout == "/tmp\n0\n"


def test_a_program_that_is_not_there_ends_with_127(box: Sandbox) -> None:
    assert box.exec("/no/such/program").collect().exit_code == 127
    with pytest.raises(Invalid, match="name the program"):
        box.exec()


def test_files_are_written_read_listed_and_removed(box: Sandbox) -> None:
    files = box.files
    files.write("a/b/one.txt", "eins", mode=0o600)
    files.write("a/two.bin", bytes(range(256)))
    assert files.read_text("a/b/one.txt") == "eins"
    assert files.read("a/two.bin") == bytes(range(256))
    assert [(one.name, one.kind) for one in files.list("a")] == [
        ("b", FileKind.DIRECTORY),
        ("two.bin", FileKind.FILE),
    ]
    found = files.stat("a/b/one.txt")
    assert (found.size, found.mode & 0o777) == (4, 0o600)
    assert found.path.endswith("/a/b/one.txt")
    files.mkdir("c/d")
    assert files.exists("c/d")
    files.remove("a/two.bin")
    assert not files.exists("a/two.bin")
    with pytest.raises((Conflict, Invalid)):
        files.remove("a")
    files.remove("a", recursive=True)
    assert [one.name for one in files.list()] == ["c"]


def test_what_cannot_be_done_with_a_file_is_said(box: Sandbox) -> None:
    for act in (box.files.read, box.files.list, box.files.stat, box.files.remove):
        with pytest.raises(NotFound):
            act("/none")
    with pytest.raises(Invalid):
        box.files.read("/tmp")


def test_trees_are_copied_both_ways(box: Sandbox, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "run.sh").write_text("#!/bin/sh\necho hi\n")
    (tree / "sub" / "run.sh").chmod(0o755)
    box.files.upload(tree, "there")
    assert box.exec("./run.sh", cwd=box.files.stat("there/sub").path).collect().stdout == "hi\n"
    assert box.files.download("there", tmp_path / "back") == ()
    assert (tmp_path / "back/sub/run.sh").read_text() == "#!/bin/sh\necho hi\n"
    assert (tmp_path / "back/sub/run.sh").stat().st_mode & 0o777 == 0o755


def test_a_directory_with_one_file_stays_a_directory(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "only.txt").write_text("x")
    box.files.upload(tmp_path, "lone")
    assert [one.name for one in box.files.list("lone")] == ["only.txt"]


def test_files_are_copied_to_a_name_or_into_a_directory(box: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("f")
    box.files.upload(tmp_path / "f.txt", "renamed.txt")
    box.files.mkdir("folder")
    box.files.upload(tmp_path / "f.txt", "folder")
    assert box.files.read("renamed.txt") == box.files.read("folder/f.txt") == b"f"
    box.files.download("folder/f.txt", tmp_path / "g.txt")
    (tmp_path / "into").mkdir()
    box.files.download("folder/f.txt", tmp_path / "into")
    assert (tmp_path / "g.txt").read_text() == (tmp_path / "into/f.txt").read_text() == "f"
    with pytest.raises(Invalid):
        box.files.upload(tmp_path / "none", "x")
    with pytest.raises(NotFound):
        box.files.download("none", tmp_path / "x")


def test_a_service_inside_is_reached_by_url_and_by_connection(box: Sandbox) -> None:
    box.files.write("hello.txt", "hello")
    server = box.exec("python3", "-m", "http.server", "8000")
    port = box.port(8000, wait=WITHIN_S)
    with urllib.request.urlopen(f"{port.url}/hello.txt", timeout=WITHIN_S) as answer:
        assert answer.read() == b"hello"
    with port.connect() as connection:
        connection.settimeout(WITHIN_S)
        connection.sendall(b"GET /hello.txt HTTP/1.0\r\n\r\n")
        assert connection.makefile("rb").read().endswith(b"hello")
    server.kill()


def test_a_port_on_which_nothing_listens_is_said_to_be_one(box: Sandbox) -> None:
    with pytest.raises(Unavailable):
        box.port(9, wait=0.1)
    with pytest.raises(Invalid):
        box.port(70000)


@freezes
def test_a_snapshot_is_forked_cloned_and_restored(box: Sandbox) -> None:
    box.files.write("state", "before")
    ready = box.snapshot("ready")
    box.files.write("state", "after")
    first, second = ready.fork(2)
    first.files.write("state", "first")
    assert [one.files.read_text("state") for one in (box, first, second)] == ["after", "first", "before"]
    with box.clone() as copy:
        assert copy.files.read_text("state") == "after"
    assert [one.name for one in box.snapshots()] == ["ready"]
    ready.restore()
    assert box.state is BoxState.RUNNING
    assert box.files.read_text("state") == "before"
    ready.remove()
    assert box.snapshots() == ()
    for one in (first, second):
        one.remove()


@freezes
def test_a_sandbox_is_paused_stopped_and_started_again(box: Sandbox) -> None:
    box.files.write("kept", "yes")
    box.pause()
    assert box.state is BoxState.PAUSED
    box.resume()
    box.stop(grace=0)
    assert box.state is BoxState.STOPPED
    box.start()
    assert box.state is BoxState.RUNNING
    box.stop(grace=0)
    assert box.files.read_text("kept") == "yes"  # whoever uses it starts it


def test_what_has_a_name_is_kept_and_found_again(where: Where) -> None:
    name = f"dev-{secrets.token_hex(4)}"
    with Sandbox(name=name, labels={"team": "a"}, **where) as box:
        box.files.write("kept", "yes")
        with pytest.raises(Conflict):
            Sandbox(name=name, **where)
    found = Sandbox.find(name, **where)
    assert (found.id, found.state, found.info().labels) == (box.id, BoxState.STOPPED, {"team": "a"})
    assert found.files.read_text("kept") == "yes"
    assert name in [one.name for one in Sandbox.list(**where)]
    found.remove()
    with pytest.raises(NotFound):
        Sandbox.find(name, **where)


@freezes
def test_a_sandbox_is_saved_to_a_file_and_loaded(box: Sandbox, where: Where, tmp_path: Path) -> None:
    box.files.write("kept", "yes")
    box.save(tmp_path / "box")
    with Sandbox.load(tmp_path / "box", **where) as loaded:
        assert loaded.files.read_text("kept") == "yes"
    (tmp_path / "bad").write_bytes(b"bad" * 1000)
    with pytest.raises(Invalid):
        Sandbox.load(tmp_path / "bad", **where)


def test_a_sandbox_that_nobody_refers_to_is_removed(where: Where) -> None:
    box = Sandbox(**where)
    id = box.id
    del box
    gc.collect()
    deadline = time.monotonic() + WITHIN_S
    while id in [one.id for one in Sandbox.list(**where)]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_sandbox_that_was_removed_is_not_there(where: Where) -> None:
    box = Sandbox(**where)
    box.remove()
    box.close()
    with pytest.raises(NotFound):
        box.run("print()")


def test_what_can_never_be_is_refused(where: Where) -> None:
    with pytest.raises(Invalid, match="memory"):
        Sandbox(memory="lots", **where)
    with pytest.raises(Invalid, match="memory"):
        Sandbox(memory="4", **where)
    with pytest.raises(Invalid, match="memory"):
        Sandbox(memory="100000G", **where)
    with pytest.raises(Invalid, match="name"):
        Sandbox(name="no/name", **where)
    with pytest.raises(Invalid, match="network"):
        Sandbox(network=["not a name!"], **where)
