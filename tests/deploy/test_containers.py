"""Image, compose file and units, for real: built, started, used, stopped. Minutes long: STOCKADE_LONG_TESTS=1."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy.engine import BUILD_S, Engine, engine, make_base, missing
from tests.deploy.units import COMMAND_S, DEPLOY, FOLDER, ROOT

HERE = Path(__file__).parent
STANDINS = HERE / "standins"
KEY = "a-key-of-the-tests-0123456789"
UP_S = 120.0
POWERS = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_ADMIN NET_RAW IPC_LOCK
SYS_PTRACE SYS_ADMIN SYS_NICE SYS_CHROOT MKNOD SETFCAP AUDIT_WRITE SYSLOG LEASE
"""
"""Of a machine with systemd: all but SYS_RESOURCE, which not every host has itself."""

pytestmark = [
    pytest.mark.skipif(not os.environ.get("STOCKADE_LONG_TESTS"), reason="takes minutes; STOCKADE_LONG_TESTS=1"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may start a Docker engine"),
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}"),
    pytest.mark.timeout(3600),
]


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that has all images, and a network of its own."""
    folder = tmp_path_factory.mktemp("engine")
    with engine(folder, has_network=True) as one:
        make_base(one, folder)

        def build(tag: str, file: Path, context: Path) -> None:
            words = ("build", "--network", "host", "--tag", tag, "--file", str(file), str(context))
            one(*words, timeout_s=BUILD_S)

        build("stockade", DEPLOY / "Containerfile", ROOT)
        build("postgres-standin", STANDINS / "Containerfile.postgres", STANDINS)
        build("redis-standin", STANDINS / "Containerfile.redis", STANDINS)
        build("systemd-standin", STANDINS / "Containerfile.systemd", FOLDER)
    with engine(folder, has_network=False) as one:
        yield one


def test_the_composed_services_come_up_work_and_end(docker: Engine, tmp_path: Path) -> None:
    """PostgreSQL and Redis are Debian's, in the place of images from a registry; all else is as users have it."""
    compose = composing(tmp_path)
    docker.run([*compose, "up", "--no-build", "--detach", "--scale", "worker=2"])
    try:
        wait_until_healthy(docker, 6)
        docker.inside(sys.executable, str(HERE / "using.py"), "http://127.0.0.1:8080", KEY, "python", "node", "go")
        docker.run([*compose, "stop"])
        ended = docker("ps", "--all", "--format", "{{.Names}} {{.Status}}").splitlines()
        assert len(ended) == 6
        assert all("Exited (0)" in line for line in ended), ended
    finally:
        docker.run([*compose, "down", "--volumes"])


def test_one_container_does_it_all(docker: Engine) -> None:
    """Server and warden together, with the options of the warden's service."""
    warden = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]["warden"]
    options = ["--init", "--user", "0", "--cap-drop", "ALL", "--cgroupns", warden["cgroup"]]
    options += [word for name in warden["cap_add"] for word in ("--cap-add", name)]
    options += [word for option in warden["security_opt"] for word in ("--security-opt", option)]
    options += ["--network", "none", "--env", f"STOCKADE_API_KEY={KEY}", "--env", "STOCKADE_DATA_DIR=/data"]
    options += ["--volume", "/data", "--entrypoint", "stockade-in-container"]
    name = docker("run", "--detach", *options, "stockade", "serve", "--user", "stockade").strip()
    try:
        use_inside(docker, name)
    finally:
        docker("rm", "--force", "--volumes", name)


def test_the_units_work_in_a_systemd(docker: Engine) -> None:
    """Each with all of its restrictions: the server, a worker, and a sandbox of the warden's."""
    powers = [word for name in POWERS.split() for word in ("--cap-add", name)]
    name = docker(
        "run", "--detach", *powers, "--security-opt", "seccomp=unconfined", "--security-opt", "systempaths=unconfined",
        "--network", "none", "--tmpfs", "/run:exec", "--tmpfs", "/tmp", "--env", "container=docker", "systemd-standin",
    ).strip()  # fmt: skip
    units = ("stockade-warden", "stockade", "stockade-worker@python")
    try:
        use_inside(docker, name)
        for unit in units:
            told = docker("exec", name, "systemctl", "show", "--property=ActiveState,NRestarts", unit)
            assert told.split() == ["NRestarts=0", "ActiveState=active"], unit
        docker("exec", name, "systemctl", "stop", *reversed(units))
        assert docker("exec", name, "systemctl", "--failed", "--no-legend") == ""
        left = docker("exec", name, "find", "/sys/fs/cgroup", "-name", "stockade-[0-9]*")
        assert left == ""
    finally:
        docker("rm", "--force", name)


def use_inside(docker: Engine, name: str) -> None:
    """Wait for the server in that container, then use it from there."""
    python = "/opt/stockade/.venv/bin/python"
    url = "http://127.0.0.1:8080"
    asking = f"import urllib.request; urllib.request.urlopen('{url}/health', timeout=5)"
    wait_for(docker, "exec", name, python, "-c", asking)
    docker("cp", str(HERE / "using.py"), f"{name}:/opt/using.py")
    docker("exec", name, python, "/opt/using.py", url, KEY, "python", "node", "go")


def composing(folder: Path) -> list[str]:
    """The command that composes our file, with Compose itself, or the Debian package docker-compose, which is older."""
    text = (DEPLOY / ".env.example").read_text(encoding="utf-8")
    secrets = [f"{line}{KEY}-of-more-than-32\n" for line in text.splitlines() if line.endswith("=")]
    mine = [f"STOCKADE_API_KEY={KEY}", "STOCKADE_USERS_PUBLIC_URL="]
    mine += ["POSTGRES_IMAGE=postgres-standin", "REDIS_IMAGE=redis-standin"]
    # Of two lines with the same name the last one counts.
    (folder / "env").write_text(text + "".join(secrets) + "\n".join(mine) + "\n", encoding="utf-8")
    given = ["--env-file", str(folder / "env"), "--project-name", "stockade"]
    done = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=COMMAND_S)
    if done.returncode == 0:
        return ["docker", "compose", *given, "--file", str(DEPLOY / "compose.yaml")]
    if shutil.which("docker-compose") is None:
        pytest.skip("neither the plugin compose nor docker-compose is installed")
    # Version 1 knows neither of these: the project's name is given above, and the engine has the other as its default.
    file = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    del file["name"]
    assert file["services"]["warden"].pop("cgroup") == "private"
    (folder / "compose.yaml").write_text(yaml.safe_dump(file), encoding="utf-8")
    return ["docker-compose", *given, "--file", str(folder / "compose.yaml")]


def wait_until_healthy(docker: Engine, number: int) -> None:
    deadline = time.monotonic() + UP_S
    while True:
        states = docker("ps", "--all", "--format", "{{.Names}}: {{.Status}}").splitlines()
        if sum("(healthy)" in state for state in states) == number:
            return
        assert time.monotonic() < deadline, states
        time.sleep(0.2)


def wait_for(docker: Engine, *words: str) -> None:
    """Until that command of the engine's succeeds."""
    deadline = time.monotonic() + UP_S
    while True:
        try:
            docker(*words)
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return
