"""Several users of one host at one warden's socket: each sees what they made, and the kernel says who they are."""

import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stockade.backends.base import BackendOptions
from stockade.backends.native import NativeBackend
from stockade.warden.protocol import VERSION
from tests.backends.living import living, ran
from tests.warden.raw import Warden

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")]
FRIEND, STRANGER = 65534, 65533
ASKED = ("inspect", "kill", "remove", "extend", "stop", "exec", "open", "agent", "dial", "ended", "signal", "forget")


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[NativeBackend]:
    warden = Warden(tmp_path, "--allow-uid", str(FRIEND), "--disks", str(tmp_path / "disks"))
    assert warden.word == {"ok": True}
    for path in warden.path.parents:
        if not path.stat().st_mode & 0o001:  # as pytest makes them
            path.chmod(path.stat().st_mode | 0o011)
    warden.path.chmod(0o666)  # as its keeper hands it over; here to all
    backend = NativeBackend(BackendOptions(data_dir=tmp_path, warden_socket=warden.path))
    await backend.start()
    yield backend
    await backend.close()
    warden.close()


def said_to(user: int, path: Path, messages: list[dict[str, Any]]) -> list[Any]:
    """What the warden answers to a process of *user*; `None` where it hangs up."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                connection.settimeout(30)
                connection.connect(str(path))
                answers = []
                for message in messages:
                    try:
                        connection.send(json.dumps(message).encode())
                        answers.append(json.loads(connection.recv(1 << 18) or b"null"))
                    except OSError:
                        answers.append(None)
            os.write(writing, json.dumps(answers).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        text = file.read()
    os.waitpid(pid, 0)
    found: list[Any] = json.loads(text)
    return found


async def test_a_sandbox_of_another_users_is_not_there(backend: NativeBackend) -> None:
    path = backend._options.warden_socket
    assert path is not None
    async with living(backend.sandboxing) as name:
        messages = [{"op": "hello", "version": VERSION, "id": 0}, {"op": "inventory", "id": 1}]
        messages += [{"op": one, "id": 2, "sandbox": name, "process": "main", "grace_s": 1} for one in ASKED]
        messages += [{"op": one, "id": 2, "sandbox": "none-of-that-name", "process": "main"} for one in ASKED]
        _, inventory, *answers = said_to(FRIEND, path, messages)
        assert inventory["ok"]["sandboxes"] == []
        real, missing = answers[: len(ASKED)], answers[len(ASKED) :]
        assert [json.dumps(one).replace(name, "none-of-that-name") for one in real] == [
            json.dumps(one) for one in missing
        ]
        assert said_to(STRANGER, path, messages[:1]) == [None]
        assert await ran(backend.sandboxing, name, "echo", "yes") == (b"yes\n", b"", 0)


async def test_a_disk_of_another_users_is_not_there(backend: NativeBackend) -> None:
    """By whatever name: not to be listed, read, copied, changed or deleted, nor to be stood on or mounted."""
    path, disks = backend._options.warden_socket, backend.disks
    assert path is not None
    await disks.make("kept", size_bytes=64 << 20)
    await disks.make("sealed", size_bytes=64 << 20)
    await disks.seal("sealed")
    own = {"op": "disk_make", "id": 1, "disk": "kept", "size_bytes": 1 << 20}
    limits = {"cpus": 1, "memory_bytes": 1 << 26, "processes": 9, "disk_bytes": 1 << 20, "disk_inodes": 99}
    stay = {"op": "create", "id": 3, "image": "host", "cwd": "/", "log_bytes": 4096, "kept_bytes": 4096, "keep_s": 1}
    stay["limits"] = limits | {"open_files": 64, "stack_bytes": 1 << 20}
    names = ["sealed", "0ukept", "kept0", "0usealed"]
    asked: list[dict[str, Any]] = []
    for name in names:
        asked += [{"op": f"disk_{one}", "id": 2, "disk": name} for one in ("info", "seal")]
        asked += [{"op": "disk_copy", "id": 2, "of": name, "disk": "mine", "size_bytes": None}]
        asked += [{"op": "disk_replace", "id": 2, "disk": "kept", "by": name}]
        asked += [{"op": "disk_resize", "id": 2, "disk": name, "size_bytes": 1 << 40}]
        asked += [{**stay, "sandbox": "x", "disk": name}, {**stay, "sandbox": "x", "layers": [name]}]
        asked += [{**stay, "sandbox": "x", "mounts": [{"disk": name, "path": "/m", "read_only": False}]}]
    gone = [{"op": "disk_delete", "id": 2, "disk": name} for name in ("kept", *names)]
    hello, listed = {"op": "hello", "version": VERSION, "id": 0}, {"op": "disk_list", "id": 4}
    answers = said_to(FRIEND, path, [hello, listed, own, listed, *asked, *gone, listed])
    assert answers[1]["ok"]["disks"] == []
    assert "ok" in answers[2], answers[2]  # its own of that name
    assert [one["disk"] for one in answers[3]["ok"]["disks"]] == ["kept"]
    for message, answer in zip(asked, answers[4:], strict=False):
        assert answer["error"]["kind"] in ("not_found", "invalid"), (message, answer)
    assert answers[-1]["ok"]["disks"] == []
    assert {one.name: one.is_layer for one in await disks.list()} == {"kept": False, "sealed": True}
    for name in ("kept", "sealed"):
        await disks.delete(name)
