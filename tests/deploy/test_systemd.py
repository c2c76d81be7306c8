"""The unit files: systemd understands them, and what they start works with what they leave.

That they work in a real systemd is in test_containers.py.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.serving import START_S, command, environment
from tests.deploy.units import COMMAND_S, FOLDER, PROGRAM, system_calls, values
from tests.deploy.using import use, use_box

HERE = Path(__file__).parent
UNITS = ("stockade.service", "stockade-warden.service", "stockade-worker@.service")
KEY = "a-key-of-the-tests-0123456789"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root's warden needs capabilities")
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (Debian package systemd)"
)


def without_capabilities_but(*names: str) -> list[str]:
    """Arguments of setpriv(1)."""
    kept = "".join(f",+{name.removeprefix('CAP_').lower()}" for name in names)
    return ["setpriv", f"--bounding-set=-all{kept}", "--inh-caps=-all", "--no-new-privs"]


@pytest.fixture(scope="module")
def warden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a warden listens that has the capabilities of its unit, and no others."""
    folder = tmp_path_factory.mktemp("warden")
    socket = folder / "warden.sock"
    kept = " ".join(values("stockade-warden.service", "CapabilityBoundingSet")).split()
    words = [*without_capabilities_but(*kept), *command("warden", "--listen", str(socket))]
    with subprocess.Popen(words, env=environment(STOCKADE_DATA_DIR=str(folder))) as process:
        try:
            deadline = time.monotonic() + START_S
            while not socket.exists():
                assert process.poll() is None, "the warden has ended"
                assert time.monotonic() < deadline, "the warden does not come up"
                time.sleep(0.05)
            yield socket
        finally:
            process.terminate()
            assert process.wait(START_S) == 0


@needs_systemd
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    for unit in UNITS:
        text = (FOLDER / unit).read_text(encoding="utf-8")
        assert f"ExecStart={PROGRAM} " in text
        (tmp_path / unit).write_text(text.replace(PROGRAM, sys.executable), encoding="utf-8")
    named = [str(tmp_path / unit.replace("@.", "@go.")) for unit in UNITS]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *named], capture_output=True, text=True, timeout=COMMAND_S
    )
    complaints = [line for line in done.stderr.splitlines() if "stockade" in line]
    assert complaints == []


@needs_systemd
@pytest.mark.parametrize(("unit", "most"), [(UNITS[0], 16), (UNITS[1], 68), (UNITS[2], 16)])
def test_the_units_expose_little(unit: str, most: int) -> None:
    """Of 100, as `systemd-analyze security` counts: a unit without any setting has 96."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={most}", str(FOLDER / unit)],
        capture_output=True, text=True, timeout=COMMAND_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


def test_a_worker_is_held_as_the_server_is() -> None:
    differing = ("Description=", "ExecStart=", "#")
    server, worker = (
        [line for line in (FOLDER / unit).read_text(encoding="utf-8").splitlines() if not line.startswith(differing)]
        for unit in (UNITS[0], UNITS[2])
    )
    assert server == worker


@root_only
@needs_systemd
def test_the_server_works_without_what_its_unit_takes_away(warden: Path, tmp_path: Path) -> None:
    """No capability, only the system calls of its filter, no memory that is writable and executable."""
    with restricted(warden, tmp_path / "data") as url:
        use(url, KEY, ["python"])
        use_box(url, KEY)


@contextlib.contextmanager
def restricted(warden: Path, data_dir: Path) -> Iterator[str]:
    """The URL of a server that is held as its unit holds it."""
    # As root, which the unit's is not, a server makes sure of whose its files are.
    calls = system_calls("stockade.service") | {"chown", "fchown", "fchownat", "lchown"}
    allowed = ",".join(sorted(calls))
    serve = command("serve", "--port", "0", "--data-dir", str(data_dir))
    words = [*without_capabilities_but(), sys.executable, "-I", str(HERE / "restricted.py"), allowed, *serve]
    variables = environment(STOCKADE_SANDBOX_WARDEN_SOCKET=str(warden), STOCKADE_API_KEY=KEY)
    with subprocess.Popen(words, env=variables, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = ""
            for line in process.stdout:
                said += line
                if line.startswith("Stockade answers at"):
                    break
            else:
                raise AssertionError(f"the server did not start: {said}")
            status = Path(f"/proc/{process.pid}/status").read_text()
            assert "Seccomp:\t2" in status
            assert "CapBnd:\t0000000000000000" in status
            yield line.split()[-1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(START_S)
