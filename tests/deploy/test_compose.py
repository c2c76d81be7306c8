"""The compose file and the image's recipe say what the documentation promises."""

import re
import subprocess

import pytest
import yaml

from tests.deploy.units import COMMAND_S, DEPLOY, ROOT, values

FILE = DEPLOY / "compose.yaml"
TEXT = FILE.read_text(encoding="utf-8")
SERVICES = yaml.safe_load(TEXT)["services"]
RECIPE = (DEPLOY / "Containerfile").read_text(encoding="utf-8")


def example() -> dict[str, str]:
    lines = (DEPLOY / ".env.example").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_the_example_names_every_variable_that_must_be_set_and_sets_no_secret() -> None:
    needed = set(re.findall(r"(?<!\$)\$\{(\w+):\?", TEXT))
    assert needed <= example().keys()
    assert not any(example()[name] for name in needed)
    known = set(re.findall(r"(?<!\$)\$\{(\w+)", TEXT))
    assert example().keys() <= known


def test_only_this_machine_reaches_the_server_and_only_services_the_records() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert yaml.safe_load(TEXT)["networks"]["records"] == {"internal": True}
    assert SERVICES["postgres"]["networks"] == SERVICES["redis"]["networks"] == ["records"]
    assert SERVICES["warden"]["networks"] == ["sandboxes"]


def test_the_warden_has_the_capabilities_of_its_unit_and_nobody_else_has_any() -> None:
    unit = " ".join(values("stockade-warden.service", "CapabilityBoundingSet")).split()
    assert {f"CAP_{name}" for name in SERVICES["warden"]["cap_add"]} == set(unit)
    for name in ("server", "worker", "warden"):
        service = SERVICES[name]
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"]
        assert "no-new-privileges" in service["security_opt"]
        assert name == "warden" or "cap_add" not in service
    assert not any("privileged" in service for service in SERVICES.values())


def test_what_redis_accepts_is_on_disk() -> None:
    command = SERVICES["redis"]["command"][-1]
    assert "--appendonly yes --appendfsync always" in command
    assert "--maxmemory-policy noeviction" in command


def test_every_service_says_whether_it_is_well_and_comes_back() -> None:
    for service in SERVICES.values():
        assert service["healthcheck"]
        assert service["restart"] == "unless-stopped"


def test_the_warden_serves_the_user_of_the_image() -> None:
    uid = SERVICES["warden"]["command"][-1]
    assert f"--uid {uid} " in RECIPE
    assert f"uid={uid},gid={uid}" in str(SERVICES["worker"]["tmpfs"])


def test_what_the_image_is_made_of_is_there_and_let_in() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [line.split()[1:-1] for line in RECIPE.splitlines() if line.startswith("COPY ") and "--from" not in line]
    for source in (one for names in copied for one in names):
        assert (ROOT / source).exists(), source
        assert any(f"!{part}" in ignored for part in (source, str((ROOT / source).parent.relative_to(ROOT)))), source


def test_compose_understands_the_file() -> None:
    try:
        available = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=COMMAND_S).returncode
    except FileNotFoundError:
        available = 1
    if available:
        pytest.skip("docker's plugin compose is not installed")
    secrets = {name: value or "x" * 32 for name, value in example().items()}
    done = subprocess.run(
        ["docker", "compose", "--file", str(FILE), "config", "--quiet"],
        env=secrets | {"PATH": "/usr/bin:/bin", "HOME": "/"}, capture_output=True, text=True, timeout=COMMAND_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
