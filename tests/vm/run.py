"""Boot a small virtual machine whose only control groups are v2, and run the checks of `checks.py` in it.

    python3 -m tests.vm.run [--kernel DIR] [--scene NAME ...]

QEMU emulates the processor in software (TCG), so that no hardware support is needed. Nothing is installed: the kernel
is one that lies on this host, or Debian's, fetched with `apt-get download` and unpacked into the temporary directory.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "src")]

from tests.vm import initramfs  # noqa: E402 - the project need not be installed

__all__ = ["NotHere", "Result", "fetch_kernel", "find_kernel", "missing_tools", "run"]

QEMU = "qemu-system-x86_64"
WITHIN_S = 600.0
_MEMORY_MB = 768
_PACKAGE = "linux-image-cloud-amd64"
_LINE = re.compile(r"^(PASS|FAIL) (\S+)(?:: (.*))?$")


class NotHere(Exception):
    """This host lacks what the virtual machine needs; the message says what to install."""


Result = tuple[bool, str]
"""Whether the check held, and what it saw."""


def missing_tools() -> str | None:
    """Why the virtual machine cannot be built here, whatever the kernel, or `None`."""
    if os.uname().machine != "x86_64":
        return "only an x86-64 host's programs can run in the virtual machine"
    if shutil.which(QEMU) is None:
        return f"{QEMU} is not installed: apt-get install --no-install-recommends qemu-system-x86"
    if not os.access(initramfs.PYTHON, os.X_OK):
        return f"{initramfs.PYTHON} is not there: apt-get install python3"
    return None


def find_kernel(top: Path) -> tuple[Path, Path] | None:
    """A kernel below *top* (`/`, or where its package was unpacked) and the directory of its modules; Debian's cloud
    kernels, which are the smallest, first."""
    images = sorted((top / "boot").glob("vmlinuz-*"), key=lambda path: ("cloud" not in path.name, path.name))
    for image in images:
        for place in ("lib/modules", "usr/lib/modules"):
            modules = top / place / image.name.removeprefix("vmlinuz-")
            if modules.is_dir() and os.access(image, os.R_OK):
                return image, modules
    return None


def fetch_kernel(directory: Path) -> Path:
    """Fetch Debian's cloud kernel and unpack it below *directory*, which is returned. Nothing is installed.

    Raises:
        NotHere: no such package can be had.
    """
    try:
        depends = _output(["apt-cache", "depends", "--important", _PACKAGE], directory)
        package = re.search(r"Depends: (linux-image-\S+)", depends)
        if package is None:
            raise NotHere(f"apt-get knows no package {_PACKAGE}: run apt-get update, or pass --kernel")
        _output(["apt-get", "download", "--quiet", package[1]], directory)
        for file in directory.glob("*.deb"):
            _output(["dpkg-deb", "--extract", str(file), str(directory)], directory)
    except (OSError, subprocess.SubprocessError) as error:
        raise NotHere(f"cannot fetch {_PACKAGE}: {error}; pass --kernel") from error
    return directory


def _output(command: list[str], directory: Path) -> str:
    ended = subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, text=True, timeout=180, check=True)
    return ended.stdout


def run(kernel: tuple[Path, Path], directory: Path, scenes: Iterable[str] = ()) -> dict[str, Result]:
    """Boot and let the checks run; what came of each by its name, in order. Their lines are echoed as they come.

    Raises:
        subprocess.TimeoutExpired: the machine was still running after ten minutes; it has been ended.
        AssertionError: it ended before the checks had.
    """
    image, modules = kernel
    (directory / "initramfs").write_bytes(initramfs.build(modules))
    command_line = "console=ttyS0 quiet loglevel=1 panic=-1 reboot=t mitigations=off random.trust_cpu=on"
    command = [
        "nice", "-n", "10", QEMU, "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", str(_MEMORY_MB),
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
        "-kernel", str(image), "-initrd", str(directory / "initramfs"),
        "-append", " ".join([command_line, "--", *scenes]),
    ]  # fmt: skip
    ended = subprocess.run(
        ["timeout", "--kill-after=5", f"{WITHIN_S:g}", *command],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=WITHIN_S + 20, check=False,
    )  # fmt: skip
    text = ended.stdout.decode(errors="replace").replace("\r", "")
    sys.stdout.write(text)
    matches = filter(None, map(_LINE.match, text.splitlines()))
    results = {match[2]: (match[1] == "PASS", match[3] or "") for match in matches}
    assert f"DONE {len(results)}\n" in text, f"the machine ended (status {ended.returncode}) too early:\n{text}"
    return results


def main() -> int:
    """Returns the exit status: 0 when every check held."""
    parser = argparse.ArgumentParser(prog="tests.vm.run", description=__doc__)
    parser.add_argument("--kernel", type=Path, metavar="DIR", help="where boot/ and lib/modules/ of a kernel are")
    parser.add_argument("--scene", action="append", default=[], metavar="NAME", help="only this one (repeatable)")
    arguments = parser.parse_args()
    problem = missing_tools()
    if problem is not None:
        sys.stderr.write(problem + "\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="stockade-vm-") as name:
        directory = Path(name)
        try:
            kernel = find_kernel(arguments.kernel or Path("/")) or find_kernel(fetch_kernel(directory))
        except NotHere as error:
            sys.stderr.write(f"{error}\n")
            return 2
        if kernel is None:
            sys.stderr.write("there is no kernel with its modules\n")
            return 2
        results = run(kernel, directory, arguments.scene)
    return 0 if all(held for held, _ in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
