"""The published clients of BoxLite, oldest and newest, against the dialect over boxes in memory."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.dialects.boxlite.clients import VERSIONS, drive
from tests.dialects.boxlite.routing import Served, serving

pytestmark = pytest.mark.anyio


@pytest.fixture
async def served(anyio_backend: str) -> AsyncIterator[Served]:
    async with serving() as one:
        yield one


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_call_about_boxes_works(served: Served, tmp_path: Path, version: str) -> None:
    seen = await drive(version, "client_boxes.py", served.url, "key-a", str(tmp_path))
    assert seen["version"] == version
    assert seen["info"] == [seen["id"], f"v{version}-dev", "host", 1, 128, "configured"]
    assert seen["running"] is True
    assert seen["by_name"] == seen["id"]
    assert seen["nobody"] is None
    assert seen["again"] is False
    assert seen["listed"] == [f"v{version}-dev"]
    assert seen["runtime"] == [1, 1]
    assert seen["boot_ms"] == 12
    assert seen["snapshots"] == ["s 1/é"]
    assert seen["no_snapshot"] is None
    assert (seen["clone"], seen["imported"]) == (f"v{version}-copy", f"v{version}-imported")
    assert Path(seen["exported"]).exists()
    assert seen["clone_gone"] is None
    assert seen["left"] == []


async def test_the_oldest_client_knows_errors_by_their_text(served: Served, tmp_path: Path) -> None:
    seen = await drive(VERSIONS[0], "client_boxes.py", served.url, "key-a", str(tmp_path))
    texts = [seen[what][1] for what in ("duplicate", "unknown_image", "remove_running", "snapshot_again")]
    begins = ("already exists: ", "images error: ", "invalid state: ", "already exists: ")
    assert all(text.startswith(begin) for text, begin in zip(texts, begins, strict=True))
    assert seen["bad_key"][1].startswith("configuration error: token exchange failed (HTTP 401 ")


async def test_the_newest_client_knows_errors_by_their_class(served: Served, tmp_path: Path) -> None:
    seen = await drive(VERSIONS[-1], "client_boxes.py", served.url, "key-a", str(tmp_path))
    classes = [seen[what][0] for what in ("bad_key", "duplicate", "unknown_image", "remove_running")]
    assert classes == ["ConfigError", "AlreadyExistsError", "ImageError", "InvalidStateError"]
    assert seen["unreachable"] == "InvalidStateError"
    assert seen["tunnel"].startswith("http://127.0.0.1:")
    assert seen["through"] == "hello"
    assert seen["volume"] == [f"v{VERSIONS[-1]}-data", True, True]
    assert seen["images"] == [1, 1]
    assert seen["registries"] == ["r.example.com"]
