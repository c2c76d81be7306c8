"""One server at a time on a data directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stockade.app.engine import prepare_data_dir
from stockade.app.lock import exclusive
from stockade.errors import Conflict, Unavailable

HOLDER = """
import sys
from pathlib import Path
from stockade.app.lock import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_holder_is_refused_and_told_who_is_the_first(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Conflict, match=f"process {holder.pid} uses the data directory"), exclusive(tmp_path):
            pass
        holder.kill()  # however it ends, the lock is free again
        holder.wait(60)
    with exclusive(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_the_data_directory_is_private(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    prepare_data_dir(path)
    assert path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o755)
    prepare_data_dir(path)
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="--data-dir"):
        prepare_data_dir(tmp_path / "file" / "data")
