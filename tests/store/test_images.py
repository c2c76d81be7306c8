"""Records of images."""

from dataclasses import replace
from datetime import timedelta

import pytest

from stockade.model.images import ImageConfig, ImageLayer, ImageRecord, ImageUser
from stockade.store import Database
from stockade.store.images import ImageName, ImageTable
from tests.store.databases import NOON

pytestmark = pytest.mark.anyio
IMAGE = ImageRecord(
    digest="sha256:" + "a" * 64,
    account_id="ann",
    reference="docker.io/library/app:1",
    config=ImageConfig(
        entrypoint=("tini", "--"),
        command=("sleep", "1"),
        env={"PATH": "/bin", "EMPTY": ""},
        cwd="/srv",
        user="1000:1000",
        exposed_ports=("80/tcp",),
        labels={"a": "b"},
        users={"app": ImageUser(uid=1000, gid=1000, home="/home/app")},
    ),
    layers=(ImageLayer(diff_id="sha256:" + "b" * 64, disk="l1", size_bytes=1 << 40),),
    size_bytes=1 << 40,
    source="registry",
    created_at=NOON,
    used_at=NOON,
    brought_by="ann",
)


def name_of(record: ImageRecord, name: str, account_id: str = "") -> ImageName:
    return ImageName(account_id=account_id, name=name, image_account_id=record.account_id, digest=record.digest)


@pytest.fixture
def table(database: Database) -> ImageTable:
    return ImageTable(database=database, server_id="server-1")


async def test_an_image_is_read_as_it_was_written_and_replaced_by_a_newer_one(table: ImageTable) -> None:
    await table.put(IMAGE, [name_of(IMAGE, IMAGE.reference, "ann")])
    assert await table.all() == [IMAGE]
    newer = replace(IMAGE, config=ImageConfig(), size_bytes=1, used_at=NOON + timedelta(hours=1))
    await table.put(newer, [name_of(IMAGE, IMAGE.reference, "ann"), name_of(IMAGE, "app", "ann")])
    assert await table.all() == [newer]
    assert await table.names() == [name_of(IMAGE, "app", "ann"), name_of(IMAGE, IMAGE.reference, "ann")]


async def test_the_same_image_of_two_accounts_is_two_records(table: ImageTable) -> None:
    other = replace(IMAGE, account_id="bob", created_at=NOON + timedelta(hours=1))
    await table.put(IMAGE)
    await table.put(other)
    assert await table.all() == [IMAGE, other]
    assert await table.remove("ann", IMAGE.digest)
    assert not await table.remove("ann", IMAGE.digest)
    assert await table.all() == [other]


async def test_a_name_leads_to_one_image_and_goes_with_it(table: ImageTable) -> None:
    second = replace(IMAGE, digest="sha256:" + "c" * 64)
    await table.put(IMAGE, [name_of(IMAGE, "app", "ann")])
    await table.put(second)
    await table.name(name_of(second, "app", "ann"))
    await table.name(name_of(second, "app"))
    await table.name(name_of(IMAGE, "old", "ann"))
    assert await table.unname("ann", "old")
    assert not await table.unname("ann", "old")
    assert await table.names() == [name_of(second, "app"), name_of(second, "app", "ann")]
    await table.remove("ann", second.digest)
    assert await table.names() == []


async def test_use_is_noted(table: ImageTable) -> None:
    await table.put(IMAGE)
    later = NOON + timedelta(days=1)
    await table.touch("ann", IMAGE.digest, at=later)
    assert [one.used_at for one in await table.all()] == [later]


async def test_each_server_has_images_of_its_own(database: Database, table: ImageTable) -> None:
    other = ImageTable(database=database, server_id="server-2")
    await table.put(IMAGE, [name_of(IMAGE, "app")])
    assert await other.all() == []
    assert await other.names() == []
    assert not await other.remove("ann", IMAGE.digest)
    assert await table.all() == [IMAGE]
