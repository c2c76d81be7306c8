"""What the unit files in deploy/systemd say."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
FOLDER = DEPLOY / "systemd"
PROGRAM = "/opt/stockade/.venv/bin/stockade"
"""Where the units look for it."""
COMMAND_S = 60


def values(unit: str, name: str) -> list[str]:
    """What a unit says for *name*, in order."""
    lines = (FOLDER / unit).read_text(encoding="utf-8").splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]


def system_calls(unit: str) -> set[str]:
    """Those that a unit's filter lets through; needs `systemd-analyze`."""
    allowed: set[str] = _group("@default")
    for value in values(unit, "SystemCallFilter"):
        is_taken_away = value.startswith("~")
        for word in value.removeprefix("~").split():
            named = _group(word) if word.startswith("@") else {word}
            allowed = allowed - named if is_taken_away else allowed | named
    return allowed


def _group(name: str) -> set[str]:
    done = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", name],
        capture_output=True, text=True, timeout=COMMAND_S, check=True,
    )  # fmt: skip
    found: set[str] = set()
    for line in done.stdout.splitlines()[1:]:
        word = line.strip()
        if word.startswith("@"):
            found |= _group(word)
        elif word and not word.startswith("#"):
            found.add(word)
    return found
