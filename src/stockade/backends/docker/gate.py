"""The gate: holds the Docker engine's socket, and makes sandboxes of one kind with it.

Whoever may talk to Docker's socket is root on the host, and the server parses what strangers send. So the server does
not talk to it: it asks a gate, a small process on the standard library, which takes a few numbers and writes the calls
itself. No member of a message reaches the engine as it came, but for those numbers (`recipe`). What a client of the
gate can do is: have sandboxes of ours made, up to a number, speak with the guest inside, and end them.

A client's connection is one container's life: a line of JSON with the request, a line with the answer, then the
container's streams as Docker frames them; after them one frame of `TRAILER`. When the client goes, so does the
container; when the gate goes, the guest's input ends, and so does it. Bytes of tenants are passed on unread.
"""

import argparse
import contextlib
import functools
import json
import os
import select
import signal
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stockade.backends.docker import image, recipe
from stockade.backends.docker.api import Api, ApiError, Unreachable
from stockade.backends.docker.guest import TERMS as _TERMS
from stockade.warden import kernel, seccomp
from stockade.warden.fields import Refused

__all__ = ["LONGEST_LINE", "MOST_SANDBOXES", "TRAILER", "VERSION", "main"]

VERSION = 1
TRAILER = 0x7F
"""Stream number of the frame that we add; Docker's own are 0 to 3."""
LONGEST_LINE = 16 << 10
MOST_SANDBOXES = 256
_MOST_CALLS = 2 * MOST_SANDBOXES
_STARTING = 4
"""Containers that are being started at a time: more make each take longer and all of them not sooner."""
_CHUNK = 64 << 10
_LONGEST_COMPLAINT = 2000
_REQUEST_S = 20.0
_LOOK_S = 0.002
_IDLE_S = 900.0
_GRACE_S = 20.0
"""Beyond the wall-clock limit, which the guest keeps."""
_STALLED_S = 60.0
_DYING_S = 3.0
_ANSWER = struct.Struct(">BxxxL")
_PEER = struct.Struct("3i")
_GATE_ID = 0x6FFE_FFFF  # nobody's
_FIRST_ID = 0x6FFF_0000  # below those of the native backend's sandboxes; not negative where ids are signed
_FIRST_ID_REMAPPED = 20_000  # where the engine maps 65,536 ids to others
_OWN_KERNELS = ("runsc", "kata", "io.containerd.runsc", "io.containerd.kata")
_MODULES = ("warden.kernel", "warden.bundle", "backends.docker.guest")


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """What is settled once the engine has been asked."""

    place: recipe.Place
    first_id: int
    facts: Mapping[str, Any]


@dataclass(kw_only=True)
class Gate:
    """Serves clients, each in a thread of its own."""

    api: Api
    image: str
    runtime: str
    instance: str
    host_paths: Sequence[str]
    _prepared: _Prepared | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _preparing: threading.Lock = field(default_factory=threading.Lock)
    _starting: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_STARTING))
    _slots: list[int] = field(default_factory=lambda: list(range(MOST_SANDBOXES)))
    _calls: dict[threading.Thread, socket.socket] = field(default_factory=dict)

    def welcome(self, client: socket.socket) -> None:
        """Serve *client* from now on."""
        thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
        with self._lock:
            if len(self._calls) < _MOST_CALLS:
                self._calls[thread] = client
                thread.start()
                return
        client.close()

    def close(self) -> None:
        """End all that runs, and wait until it has."""
        with self._lock:
            calls = dict(self._calls)
        for client in calls.values():
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + _GRACE_S
        for thread in calls:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _serve(self, client: socket.socket) -> None:
        try:
            with client:
                client.settimeout(_REQUEST_S)
                try:
                    self._answer(client, _line(client))
                except (Refused, ApiError, Unreachable) as error:
                    _complain(client, error)
        except OSError:
            pass  # the client has gone; what it had is gone as well
        finally:
            with self._lock:
                self._calls.pop(threading.current_thread(), None)

    def _answer(self, client: socket.socket, message: Mapping[str, Any]) -> None:
        match message.get("op"):
            case "hello":
                _say(client, {"ok": {"version": VERSION, **self._ready(afresh=True).facts}})
            case "run":
                limits = message.get("limits")
                if not isinstance(limits, dict):
                    raise Refused("invalid", "limits: must be an object")
                self._run(client, recipe.Demand.parse(limits))
            case _:
                raise Refused("invalid", "op: must be hello or run")

    # ── what is settled once ──

    def _ready(self, *, afresh: bool = False) -> _Prepared:
        """The engine as it is; looked at again *afresh*, but cleared up once."""
        with self._preparing:
            if self._prepared is None or afresh:
                first = self._prepared is None
                self._prepared = self._prepare()
                if first:
                    self._clear_up()
            return self._prepared

    def _prepare(self) -> _Prepared:
        info: Mapping[str, Any] = self.api.get("info")
        runtimes = info.get("Runtimes") or {}
        if self.runtime and self.runtime not in runtimes:
            raise Refused(
                "unavailable", f"the engine has no runtime {self.runtime!r}; it has {', '.join(sorted(runtimes))}"
            )
        remapped = any("name=userns" in option for option in info.get("SecurityOptions") or ())
        first_id = _FIRST_ID_REMAPPED if remapped else _FIRST_ID
        runtime = str(self.runtime or info.get("DefaultRuntime") or "")
        identity, empty = image.image_of(self.api, self.image, range(first_id, first_id + MOST_SANDBOXES))
        place = recipe.Place(
            image=identity,
            runtime=self.runtime,
            instance=self.instance,
            binds=() if self.image else image.binds(self.host_paths),
            has_own_kernel=runtime.startswith(_OWN_KERNELS),
            empty=empty,
            processors=int(info.get("NCPU") or 1),
        )
        facts = {
            "engine": info.get("ServerVersion"),
            "kernel": info.get("KernelVersion"),
            "runtime": runtime,
            "image": self.image or "the host's /usr",
            "cgroups": f"v{info.get('CgroupVersion', '1')}",
            "processors": place.processors,
            "memory": bool(info.get("MemoryLimit")),
            "swap": bool(info.get("SwapLimit")),
            "cpu_rate": bool(info.get("CpuCfsQuota")),
            "processes": bool(info.get("PidsLimit")),
            "remapped": remapped,
            "own_kernel": place.has_own_kernel,
            "own_inodes": all(recipe.is_own(place, source) for source, _ in place.binds),
            "security": [str(option) for option in info.get("SecurityOptions") or ()],
            "gate_uid": os.geteuid(),
        }
        return _Prepared(place=place, first_id=first_id, facts=facts)

    def _clear_up(self) -> None:
        """Remove what an earlier gate of this instance has left."""
        wanted = {"label": [f"{recipe.INSTANCE_LABEL}={self.instance}"]}
        for one in self.api.get("containers", "json", all=1, filters=wanted):
            self._remove(str(one["Id"]))

    # ── one container's life ──

    def _run(self, client: socket.socket, demand: recipe.Demand) -> None:
        prepared = self._ready()
        with self._lock:
            if not self._slots:
                raise Refused("unavailable", f"all {MOST_SANDBOXES} places for containers are taken")
            slot = self._slots.pop(0)  # the one that has rested longest
        container = ""
        try:
            uid = prepared.first_id + slot
            with self._starting:
                if _has_gone(client):
                    return
                body = recipe.container(prepared.place, demand, uid=uid)
                container = str(self.api.post("containers", "create", body=body)["Id"])
                streams = self.api.attach(container)
            with streams:
                with self._starting:
                    self.api.post("containers", container, "start")
                streams.settimeout(_STALLED_S)
                streams.sendall(_program() + _TERMS.pack(uid, len(_filter())) + _filter())
                _say(client, {"ok": {"uid": uid}})
                if _relay(client, streams, demand.wall_s + _GRACE_S):
                    _finish(client, self._ending(container))
        except (ApiError, Unreachable) as error:
            _complain(client, error)  # before it is let go
        finally:
            # The client first: it has its answer, and nothing of the tenant's lives once the streams have ended.
            if container:
                self._end(container, client)
            with self._lock:
                self._slots.append(slot)

    def _end(self, container: str, client: socket.socket) -> None:
        """Let the client go once nothing lives; then remove what is left."""
        with contextlib.suppress(ApiError, Unreachable):
            if self.api.get("containers", container, "json")["State"]["Running"]:
                self.api.post("containers", container, "kill")
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        self._remove(container)

    def _ending(self, container: str) -> Mapping[str, Any]:
        """What the engine says of how the guest ended."""
        deadline = time.monotonic() + _DYING_S
        while True:
            state = self.api.get("containers", container, "json")["State"]
            if not state["Running"] or time.monotonic() > deadline:
                return {"oom_killed": bool(state["OOMKilled"]), "exit_code": int(state["ExitCode"])}
            time.sleep(0.02)

    def _remove(self, container: str) -> None:
        with contextlib.suppress(ApiError, Unreachable):  # gone already; or found again when we start anew
            self.api.delete("containers", container, force=1, v=1)


@functools.cache
def _program() -> bytes:
    """What the loader reads: the guest and what it imports, as they are when we begin."""
    source = Path(__file__).parents[2]
    modules = dict.fromkeys(("stockade", "stockade.warden"), "")
    for name in _MODULES:
        modules[f"stockade.{name}" if name.startswith("warden") else "guest"] = (
            source.joinpath(*name.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        )
    pieces = [bytes([len(modules)])]
    for word in (word.encode() for pair in modules.items() for word in pair):
        pieces += [struct.pack("<I", len(word)), word]
    return b"".join(pieces)


@functools.cache
def _filter() -> bytes:
    """The tenant's system call filter: ours to choose, not the client's, as is the user id."""
    return seccomp.build()


def _relay(client: socket.socket, streams: socket.socket, within_s: float) -> bool:
    """Pass bytes both ways until the container's streams have ended; whether the client is there to hear why."""
    client.settimeout(_STALLED_S)
    deadline = time.monotonic() + _IDLE_S
    has_begun, is_here = False, True
    while (left := deadline - time.monotonic()) > 0:
        readable, _, _ = select.select([streams, client] if is_here else [streams], [], [], left)
        if client in readable:
            data = client.recv(_CHUNK)
            if data:
                if not has_begun:
                    has_begun, deadline = True, time.monotonic() + within_s
                streams.sendall(data)
            else:
                is_here = False
                streams.shutdown(socket.SHUT_WR)  # the guest's input ends, and with it all that it minds
                deadline = time.monotonic() + _DYING_S
        if streams in readable:
            data = streams.recv(_CHUNK)
            if not data:
                return is_here
            if is_here:
                client.sendall(data)
    return False


def _finish(client: socket.socket, facts: Mapping[str, Any]) -> None:
    data = json.dumps(facts).encode()
    client.sendall(_ANSWER.pack(TRAILER, len(data)) + data)


def _line(client: socket.socket) -> Mapping[str, Any]:
    """The request: what follows it is the guest's, so not a byte more is read."""
    deadline = time.monotonic() + _REQUEST_S
    data = client.recv(LONGEST_LINE, socket.MSG_PEEK)
    while data and b"\n" not in data:
        if len(data) >= LONGEST_LINE:
            raise Refused("invalid", f"a request has at most {LONGEST_LINE} bytes")
        if _has_gone(client) or time.monotonic() > deadline:
            raise OSError("the client does not go on")
        time.sleep(_LOOK_S)
        data = client.recv(LONGEST_LINE, socket.MSG_PEEK)
    line = client.recv(data.index(b"\n") + 1) if data else b""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise Refused("invalid", "a request is a line of JSON") from None
    if not isinstance(message, dict):
        raise Refused("invalid", "a request is an object")
    return message


def _say(client: socket.socket, message: Mapping[str, Any]) -> None:
    client.sendall(json.dumps(message).encode() + b"\n")


def _complain(client: socket.socket, error: Exception) -> None:
    kind, message = "fault", f"the Docker engine refused: {error}"
    if isinstance(error, Refused):
        kind, message = error.kind, str(error)
    elif isinstance(error, Unreachable):
        kind, message = "unavailable", f"the Docker engine cannot be reached: {error}"
    _say(client, {"error": {"kind": kind, "message": message[:_LONGEST_COMPLAINT]}})


def _has_gone(client: socket.socket) -> bool:
    poller = select.poll()
    poller.register(client, select.POLLRDHUP)
    return bool(poller.poll(0))


# ── the process ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _step_down(path: str) -> None:
    """Keep of root's powers only what it takes to connect to *path*: at best a group and a user id that is nobody's."""
    kernel.set_no_new_privileges()
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            info = os.stat(path)
            if info.st_gid and info.st_mode & stat.S_IRGRP and info.st_mode & stat.S_IWGRP:
                os.setgroups([])
                os.setegid(info.st_gid)
                os.seteuid(_GATE_ID)
                reachable = _can_connect(path)
                os.seteuid(0)
                if reachable:
                    kernel.drop_bounding_set()
                    os.setresgid(info.st_gid, info.st_gid, info.st_gid)
                    os.setresuid(_GATE_ID, _GATE_ID, _GATE_ID)
                else:
                    os.setegid(0)
        kernel.drop_bounding_set()
    kernel.drop_capabilities()
    kernel.set_dumpable(dumpable=False)


def _can_connect(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_REQUEST_S)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="stockade docker-gate")
    parser.add_argument("--docker-socket", default="/var/run/docker.sock")
    parser.add_argument("--image", default="")
    parser.add_argument("--runtime", default="")
    parser.add_argument("--instance", required=True)
    parser.add_argument("--host-path", action="append", default=[])
    parser.add_argument("--allow-uid", action="append", type=int, default=[])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--client-fd", type=int)
    where.add_argument("--listen")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """Serve until the control connection ends, or for as long as there is a listener."""
    arguments = _arguments(words)
    listener = _listen(arguments.listen, arguments.allow_uid) if arguments.listen else None
    _program()
    _filter()
    _step_down(arguments.docker_socket)
    gate = Gate(
        api=Api(arguments.docker_socket),
        image=arguments.image,
        runtime=arguments.runtime,
        instance=arguments.instance,
        host_paths=arguments.host_path,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if listener is not None:
            allowed = {0, os.getuid(), *arguments.allow_uid}
            while True:
                client, _ = listener.accept()
                if _PEER.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[1] in allowed:
                    gate.welcome(client)
                else:
                    client.close()
        control = socket.socket(fileno=arguments.client_fd)
        while True:
            _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
            if not descriptors:
                return 0  # whoever started us has ended
            gate.welcome(socket.socket(fileno=descriptors[0]))
    except KeyboardInterrupt:
        return 0
    finally:
        gate.close()


def _listen(path: str, allowed: Sequence[int]) -> socket.socket:
    """A listener that only root and who is allowed can reach; where those are several, each is told apart later."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(FileNotFoundError):
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(path) == 0:
                raise SystemExit(f"stockade docker-gate: another one listens at {path}")
        os.unlink(path)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    others = [uid for uid in allowed if uid]
    if len(others) == 1:
        os.chown(path, others[0], -1)
    elif others:
        os.chmod(path, 0o666)  # the kernel says who connects, and whoever is not allowed is hung up on
    listener.listen(128)
    return listener


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
