"""Every backend that can be found here, started; the native one also as an ordinary user has it."""

import os
import shutil
import stat
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import stockade
from stockade import registry
from stockade.backends.base import Backend, BackendOptions
from stockade.backends.native import launch
from stockade.errors import Unavailable, Unsupported
from tests.backends.differences import CORE, DIFFERENT, SUITES

ORDINARY = "native, as an ordinary user"
UNENFORCED = ("memory", "swap", "processes", "cpu_rate", "cpu_time", "own_ids", "disk_size")
NOBODY_ID = 65534
NOBODY = ("--reuid", str(NOBODY_ID), "--regid", str(NOBODY_ID), "--clear-groups")


def ordinary_user_command(directory: Path) -> list[str]:
    """The warden's command as another user, from a copy of the package that this user may read."""
    python = shutil.which("python3", path="/usr/bin")
    if os.geteuid() != 0 or python is None or shutil.which("setpriv") is None:
        pytest.skip("becoming an ordinary user takes root, setpriv and the system's python3")
    probe = ["setpriv", *NOBODY, "unshare", "--user", "--mount", "/bin/true"]
    tried = subprocess.run(probe, capture_output=True, text=True, timeout=20, check=False)
    if tried.returncode:
        pytest.skip(f"this host allows ordinary users no user namespaces: {tried.stderr.strip()}")
    source = Path(stockade.__file__).parent
    shutil.copytree(source, directory / "stockade", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for parent in directory.parents:
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & stat.S_IXOTH:
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    return ["setpriv", *NOBODY, python, "-I", "-S", "-c", launch._BOOT, str(directory)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a backend does not promise."""
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        call = getattr(item, "callspec", None)
        is_ours = Path(__file__).parent in item.path.parents  # pytest asks about all tests of the session
        name = "" if call is None or not is_ours else str(call.params.get("backend", ""))
        test = getattr(item, "originalname", "")
        is_promised = item.path.stem in SUITES.get(name, (item.path.stem,)) and test in CORE.get(name, (test,))
        (kept if is_promised else left_out).append(item)
        if test in DIFFERENT.get(name, {}):
            item.add_marker(pytest.mark.skip(reason=f"{name}: {DIFFERENT[name][test]}"))
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.fixture(scope="module", params=[*registry.names("backends"), ORDINARY])
async def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[Backend]:
    """A started backend; skipped, with the reason, where this host cannot run it."""
    name = str(request.param)
    allowed = UNENFORCED if name == ORDINARY or os.geteuid() != 0 else ()
    options = BackendOptions(data_dir=tmp_path_factory.mktemp("data"), allow_unenforced=allowed, embedded=True)
    with pytest.MonkeyPatch.context() as patch:
        if name == ORDINARY:
            argv = ordinary_user_command(tmp_path_factory.mktemp("package"))
            disks = tmp_path_factory.mktemp("disks")
            os.chown(disks, NOBODY_ID, NOBODY_ID)
            for parent in disks.parents:  # which pytest keeps to its own user
                if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & stat.S_IXOTH:
                    parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
            argv += ["--disks", str(disks)]
            patch.setattr(launch, "command", lambda _options: argv)
        plugin = registry.find("backends", "native" if name == ORDINARY else name)
        backend: Backend = plugin.make(options)
        try:
            await backend.start()
        except (Unavailable, Unsupported) as error:
            await backend.close()
            if name == ORDINARY:
                raise  # user namespaces are allowed here, so it has to work
            pytest.skip(f"{name}: {error}")
        yield backend
        await backend.close()
