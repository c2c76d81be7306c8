"""`stockade sandbox exec -it` and `attach` at a real terminal."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.serving import command, environment
from tests.cli.terminals import Session, terminal
from tests.sdk.stub import KEY, Stub, eventually, serving


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    with serving(tmp_path) as stub:
        yield stub


@pytest.fixture
def variables(stub: Stub, tmp_path: Path) -> dict[str, str]:
    return environment(STOCKADE_URL=stub.url, STOCKADE_API_KEY=KEY, XDG_CONFIG_HOME=str(tmp_path), TERM="dumb")


def create(variables: dict[str, str], *program: str) -> str:
    done = subprocess.run(
        command("sandbox", "create", "--", *program), env=variables, capture_output=True, timeout=60, check=True
    )
    return done.stdout.decode().strip()


@pytest.fixture
def made(variables: dict[str, str]) -> str:
    return create(variables, "sleep", "60")


@pytest.fixture
def shell(variables: dict[str, str], made: str) -> Iterator[Session]:
    """A shell inside, at its prompt."""
    with terminal(command("sandbox", "exec", "-it", "-e", "PS1=ready> ", made, "sh", "-i"), variables) as session:
        session.expect(b"ready> ")
        yield session


def test_a_shell_works_and_its_status_is_ours(shell: Session) -> None:
    assert shell.is_raw
    shell.type(b"tty && echo $((6 * 7)) $TERM\r")
    assert b"/dev/pts/" in shell.expect(b"42 dumb\r\n")
    shell.type(b"exit 7\r")
    assert shell.wait() == 7
    assert shell.attributes() == shell.before


def test_ctrl_c_goes_to_the_process(shell: Session) -> None:
    # A key that comes while the shell is still starting a program is lost to both.
    shell.type(b"sh -c 'echo started; exec sleep 60'; echo status $?\r")
    shell.expect(b"started\r\n")
    shell.type(b"\x03")
    shell.expect(b"ready> ")  # the shell has it back, and we live
    shell.type(b"echo still here; exit\r")
    shell.expect(b"still here\r\n")
    shell.wait()


def test_every_key_goes_through_as_it_is(variables: dict[str, str], made: str) -> None:
    keys = bytes(range(256))
    program = 'stty raw -echo; echo go; head -c 256 | od -An -v -tx1 | tr -d " \\n"; echo .'
    with terminal(command("sandbox", "exec", "-it", made, "sh", "-c", program), variables) as session:
        session.expect(b"go")
        session.type(keys)
        assert session.expect(b".").strip() == keys.hex().encode()
        assert session.wait() == 0


def test_output_is_shown_as_it_is(variables: dict[str, str], made: str) -> None:
    program = 'stty raw; for i in 0 1 2 3 4 5 6 7; do printf "$i\\r\\n\\n\\tx\\033[0m\\377"; done; echo end'
    with terminal(command("sandbox", "exec", "-it", made, "sh", "-c", program), variables) as session:
        shown = session.expect(b"end")
        assert shown == b"".join(b"%d\r\n\n\tx\x1b[0m\xff" % i for i in range(8))
        assert session.wait() == 0


def test_the_size_follows_the_window(shell: Session, stub: Stub) -> None:
    shell.type(b"stty size\r")
    shell.expect(b"24 80\r\n")
    shell.resize(40, 132)
    eventually(lambda: (40, 132) in stub.sizes)
    shell.type(b"stty size; exit\r")
    shell.expect(b"40 132\r\n")
    assert shell.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_us_and_the_terminal_is_as_it_was(shell: Session, stub: Stub, number: int) -> None:
    assert shell.is_raw
    shell.signal(number)
    assert shell.wait() == 128 + number
    assert shell.attributes() == shell.before
    eventually(lambda: stub.killed)


def test_a_lost_server_is_told_on_a_terminal_that_is_as_it_was(shell: Session, stub: Stub) -> None:
    stub.cut()
    shell.expect(b"stockade: the connection to the process broke")
    assert shell.wait() == 1
    assert shell.attributes() == shell.before


def test_a_process_that_is_killed_ends_us_in_order(shell: Session) -> None:
    shell.type(b"kill -9 $$\r")
    assert shell.wait() == 137
    assert shell.attributes() == shell.before


def test_a_refusal_is_told_on_a_terminal_that_was_never_changed(variables: dict[str, str]) -> None:
    with terminal(command("sandbox", "exec", "-it", "sess_none", "sh"), variables) as session:
        session.expect(b"stockade: session sess_none not found\r\n")
        assert session.wait() == 1
        assert session.attributes() == session.before


def test_while_we_are_stopped_the_terminal_is_the_shell_s(shell: Session) -> None:
    shell.signal(signal.SIGTSTP)
    eventually(lambda: not shell.is_raw)
    assert shell.attributes() == shell.before
    shell.signal(signal.SIGCONT)
    eventually(lambda: shell.is_raw)
    shell.type(b"echo again; exit\r")
    shell.expect(b"again\r\n")
    assert shell.wait() == 0


def test_a_terminal_inside_needs_none_outside(variables: dict[str, str], made: str) -> None:
    done = subprocess.run(
        command("sandbox", "exec", "-t", made, "sh", "-c", "test -t 1 && stty size"),
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert (done.stdout, done.returncode) == (b"24 80\r\n", 0)


def test_attach_leaves_with_its_keys_and_the_process_goes_on(variables: dict[str, str], stub: Stub) -> None:
    made = create(variables, "cat")
    with terminal(command("sandbox", "attach", made), variables) as session:
        eventually(lambda: session.attributes() != session.before)
        assert not session.is_raw  # lines can be edited
        session.type(b"helxlo\x08\x08")
        session.type(b"\x15hello\r")
        session.expect(b"hello\r\nhello\r\n")  # its echo, and what `cat` says
        session.type(b"not sent\x10\x11")
        session.expect(f"stockade: left {made}, which goes on".encode())
        assert session.wait() == 0
        assert session.attributes() == session.before
    assert stub.sessions[made].status == "running"
    assert bytes(stub.sessions[made].stdout).startswith(b"hello\n")


def test_attach_passes_the_end_of_input_on(variables: dict[str, str], stub: Stub) -> None:
    made = create(variables, "sh", "-c", "cat; exit 5")
    with terminal(command("sandbox", "attach", made), variables) as session:
        eventually(lambda: session.attributes() != session.before)
        session.type(b"line\r\x04")
        assert session.wait() == 5
        assert session.attributes() == session.before
    assert bytes(stub.sessions[made].stdout) == b"line\n"


def test_attach_goes_on_after_the_connection_broke(variables: dict[str, str], stub: Stub) -> None:
    made = create(variables, "cat")
    with terminal(command("sandbox", "attach", made), variables) as session:
        eventually(lambda: session.attributes() != session.before)
        session.type(b"one\r")
        session.expect(b"one\r\none\r\n")
        stub.cut()
        eventually(lambda: stub.attachments == 2)
        session.type(b"two\r")
        assert b"one" not in session.expect(b"two\r\ntwo\r\n")
        session.type(b"\x04")
        assert session.wait() == 0
