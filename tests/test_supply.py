"""What is installed beside our own code: pinned, each file by its digest, and listed."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LISTS = ("build", "dev", "runtime")


def pinned(name: str) -> dict[str, tuple[Requirement, int]]:
    """By the library's name: its requirement, and how many digests there are."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text().replace("\\\n", " ")
    found: dict[str, tuple[Requirement, int]] = {}
    for line in text.splitlines():
        words, *digests = line.split("--hash=sha256:")
        requirement = Requirement(words)
        assert all(re.fullmatch(r"[0-9a-f]{64}", one.strip()) for one in digests), line[:100]
        found[canonicalize_name(requirement.name)] = (requirement, len(digests))
    return found


def wanted(*, dev: bool) -> Iterator[Requirement]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lists = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]
    if dev:
        lists += project["dependency-groups"].values()
    for entry in (one for entries in lists for one in entries):
        if isinstance(entry, str) and not entry.startswith("stockade["):
            yield Requirement(entry)


@pytest.mark.parametrize("name", LISTS)
def test_every_library_has_one_version_and_digests(name: str) -> None:
    found = pinned(name)
    assert found
    for library, (requirement, digests) in found.items():
        assert [one.operator for one in requirement.specifier] == ["=="], library
        assert digests, library


@pytest.mark.parametrize("name", ["dev", "runtime"])
def test_what_the_project_asks_for_is_pinned_to_something_that_satisfies_it(name: str) -> None:
    found = pinned(name)
    for one in wanted(dev=name == "dev"):
        requirement, _ = found[canonicalize_name(one.name)]
        (pin,) = requirement.specifier
        assert one.specifier.contains(pin.version), f"{one}: pinned to {pin.version}; run make lock"


def test_developers_have_what_users_get() -> None:
    dev = pinned("dev")
    for library, (requirement, _) in pinned("runtime").items():
        assert dev[library][0].specifier == requirement.specifier, library


def test_what_is_installed_here_is_what_is_pinned() -> None:
    for library, (requirement, _) in pinned("runtime").items():
        if requirement.marker is None or requirement.marker.evaluate():
            assert requirement.specifier.contains(version(library)), f"{library} {version(library)}: run make setup"


@pytest.mark.parametrize("name", LISTS)
def test_lists_name_no_place(name: str) -> None:
    """Where packages come from is for each machine to say."""
    assert "://" not in (ROOT / "requirements" / f"{name}.txt").read_text()


def test_the_bill_of_materials_has_every_library_with_its_digests(tmp_path: Path) -> None:
    target = tmp_path / "sbom.json"
    # By its module: the script beside the interpreter may be another environment's.
    argv = [sys.executable, "-m", "cyclonedx_py", "requirements", "--pyproject", str(ROOT / "pyproject.toml")]
    argv += ["--output-reproducible", "--output-format", "JSON", "--output-file", str(target)]
    subprocess.run([*argv, str(ROOT / "requirements" / "runtime.txt")], check=True, timeout=60, capture_output=True)
    bill = json.loads(target.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "stockade"
    listed = {canonicalize_name(one["name"]): one for one in bill["components"]}
    assert set(listed) == set(pinned("runtime"))
    for one in listed.values():
        assert any(reference.get("hashes") for reference in one["externalReferences"]), one["name"]
