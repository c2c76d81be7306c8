"""Python programs of the corpus in sandboxes that live: as user and as root, with a terminal, with a network."""

import os
from collections.abc import AsyncIterator

import pytest

from stockade.attacks import Bait, attacks
from stockade.backends.base import BackendOptions
from stockade.backends.native import NativeBackend, launch
from stockade.backends.sandboxing import Sandboxing
from tests.backends.conftest import UNENFORCED, ordinary_user_command
from tests.security.host import wait_until_clean
from tests.security.living import escapes

pytestmark = pytest.mark.anyio
GROUPS = ("files", "forgery", "kernel", "network", "privileges", "processes", "races", "reuse")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's warden has one user id and few limits")


@pytest.fixture(scope="module")
async def sandboxing(
    bait: Bait, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[Sandboxing]:
    """Of a warden that has started after the bait was set out."""
    allowed = UNENFORCED if os.geteuid() else ()
    backend = NativeBackend(
        BackendOptions(data_dir=tmp_path_factory.mktemp("data"), allow_unenforced=allowed, embedded=True)
    )
    await backend.start()
    yield backend.sandboxing
    await backend.close()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(
    "ways",
    [
        (),
        pytest.param(("root",), marks=root_only),
        pytest.param(("root", "terminal", "outgoing"), marks=root_only),
    ],
    ids=lambda ways: "+".join(ways) or "user",
)
async def test_nothing_is_reached(bait: Bait, sandboxing: Sandboxing, ways: tuple[str, ...], group: str) -> None:
    chosen = [attack for attack in attacks() if attack.group == group and attack.language == "python"]
    assert await escapes(sandboxing, chosen, bait, frozenset(ways)) == []
    assert bait.visitors() == ()


@root_only
async def test_no_more_is_used_than_the_limits_give(bait: Bait, sandboxing: Sandboxing) -> None:
    chosen = [one for one in attacks() if one.group in ("floods", "budgets") and one.language == "python"]
    assert await escapes(sandboxing, chosen, bait, frozenset({"root"}), lifetime_s=3.0) == []
    assert wait_until_clean() == []


@root_only
async def test_nothing_is_reached_where_an_ordinary_user_has_started_the_warden(
    bait: Bait, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ordinary_user_command(tmp_path_factory.mktemp("package"))
    monkeypatch.setattr(launch, "command", lambda _options: argv)
    directory = tmp_path_factory.mktemp("data")
    backend = NativeBackend(BackendOptions(data_dir=directory, allow_unenforced=UNENFORCED, embedded=True))
    await backend.start()
    try:
        chosen = [
            attack
            for attack in attacks()
            # The kernel counts descriptors under way by user, and there is one: the warden could send none meanwhile.
            if attack.group in GROUPS and attack.language == "python" and attack.name != "sent-descriptors"
        ]
        assert await escapes(backend.sandboxing, chosen, bait, frozenset({"ordinary", "outgoing"})) == []
        assert bait.visitors() == ()
    finally:
        await backend.close()
