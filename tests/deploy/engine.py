"""A Docker engine of our own in a temporary folder, with base images that come from no registry."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_S = 60.0
COMMAND_S = 120.0
BUILD_S = 1500.0
BASE = "debian:bookworm-slim"
MADE_WITH = ("dockerd", "docker", "mmdebstrap", "unshare", "ip")
_GROUP = f"stockade-deploy-{os.getpid()}"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """It runs during the block of `engine`."""

    address: str
    pid: int
    """Of the daemon: whoever enters its network namespace reaches the ports that it publishes."""

    def __call__(self, *words: str, timeout_s: float = COMMAND_S) -> str:
        """What `docker WORDS…` prints."""
        return self.run(("docker", *words), timeout_s=timeout_s)

    def run(self, command: Sequence[str], *, timeout_s: float = COMMAND_S, **more: str) -> str:
        """What a client of the engine prints."""
        done = subprocess.run(
            command,
            env=os.environ | {"DOCKER_HOST": self.address, "DOCKER_BUILDKIT": "0"} | more,
            capture_output=True, text=True, timeout=timeout_s,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def inside(self, *command: str) -> str:
        """Run a command of ours where the engine's ports are."""
        return self.run(("nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *command))


@contextlib.contextmanager
def engine(folder: Path, *, has_network: bool, settings: Mapping[str, Any] | None = None) -> Iterator[Engine]:
    """An engine with its data in *folder*, which another one may have used before.

    Args:
        has_network: builds reach what this machine does, by `--network host`, and there are no other networks. Else the
            engine is in a network namespace of its own, with bridges and firewall: this machine's stay as they are.
        settings: what its daemon.json is to say.
    """
    address = f"unix://{folder}/docker.sock"
    configuration = folder / "daemon.json"
    configuration.write_text(json.dumps(settings or {}))  # not the machine's own
    words = [
        "dockerd", "--config-file", str(configuration), "--host", address, "--data-root", str(folder / "data"),
        "--exec-root", str(folder / "exec"), "--pidfile", str(folder / "docker.pid"), "--cgroup-parent", f"/{_GROUP}",
        "--exec-opt", "native.cgroupdriver=cgroupfs", "--default-cgroupns-mode", "private",
    ]  # fmt: skip
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if has_network:
        words += ["--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
    else:
        apart += ["--net"]
        words = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", *words]
    with (
        (folder / "dockerd.log").open("wb") as log,
        subprocess.Popen([*apart, *words], stdout=log, stderr=log, process_group=0) as process,
    ):
        try:
            yield _up(process, address, folder / "dockerd.log")
        finally:
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(_child(process.pid), signal.SIGTERM)
            try:
                process.wait(START_S)
            except subprocess.TimeoutExpired:
                process.kill()  # and by --kill-child all that the engine started
            _remove_groups()


def make_base(one: Engine, folder: Path) -> None:
    """Import what `BASE` is: a small Debian."""
    archive = folder / "base.tar"
    subprocess.run(
        [
            "mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates",
            '--aptopt=APT::Sandbox::User "root"', '--aptopt=Acquire::Check-Valid-Until "false"',
            "bookworm", str(archive),
        ],
        check=True, timeout=BUILD_S, env=os.environ | {"TMPDIR": str(folder)},
    )  # fmt: skip
    changes: list[str] = []
    if (bundle := os.environ.get("SSL_CERT_FILE")) is not None:
        # Where this machine trusts others than Debian does, what it builds has to.
        inside = "/etc/ssl/certs/of-the-host.crt"
        with tarfile.open(archive, "a") as tar:
            tar.add(os.path.realpath(bundle), f".{inside}")
        for name in ("SSL_CERT_FILE", "PIP_CERT", "NODE_EXTRA_CA_CERTS"):
            changes += ["--change", f"ENV {name}={inside}"]
    one("import", *changes, str(archive), BASE)
    archive.unlink()


def _up(process: "subprocess.Popen[bytes]", address: str, log: Path) -> Engine:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        done = subprocess.run(["docker", "--host", address, "version"], capture_output=True, timeout=COMMAND_S)
        if done.returncode == 0:
            return Engine(address=address, pid=_child(process.pid))
        time.sleep(0.1)
    raise AssertionError(f"dockerd does not come up:\n{log.read_text(errors='replace')[-2000:]}")


def _child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _remove_groups() -> None:
    """Our engine's control groups, empty by now, in every hierarchy."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.partition(" - ")[2].startswith("cgroup"):
            top = Path(line.split()[4]) / _GROUP
            for path in sorted([top, *top.rglob("*/")], key=lambda one: len(one.parts), reverse=True):
                with contextlib.suppress(OSError):
                    path.rmdir()


def missing() -> list[str]:
    """Programs that there would have to be."""
    return [name for name in MADE_WITH if shutil.which(name) is None]
