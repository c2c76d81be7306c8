"""Which backend the doctor recommends."""

import socket
from pathlib import Path

import pytest

from stockade.cli.advice import Surroundings, advice, look_around


@pytest.mark.parametrize(
    ("missing", "around", "backend", "word"),
    [
        ((), Surroundings(is_root=True, runsc=True, docker=True), "native", "gVisor is installed"),
        ((), Surroundings(is_root=True, runsc=False, docker=True), "native", "apt-get install runsc"),
        ((), Surroundings(is_root=False, runsc=True, docker=False), "native", "a warden that root started"),
        (("memory",), Surroundings(is_root=False, runsc=False, docker=True), "docker", "cannot enforce memory"),
        (("memory",), Surroundings(is_root=False, runsc=True, docker=False), "native", "no Docker engine"),
    ],
)
def test_a_backend_is_recommended_for_what_the_host_has(
    missing: tuple[str, ...], around: Surroundings, backend: str, word: str
) -> None:
    name, why = advice(missing, around)
    assert name == backend
    assert word in why


def test_an_engine_counts_where_it_listens(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    assert not look_around(path).docker
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        assert not look_around(path).docker
        listener.listen()
        assert look_around(path).docker
