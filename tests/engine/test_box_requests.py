"""What a request for a box may say, and what is made of it."""

import pytest

from stockade.engine.box_requests import checked_snapshot_name, checked_user_of
from stockade.engine.images import HOST_IMAGE, image_of
from stockade.engine.ulids import new_ulid
from stockade.errors import Fault, Invalid
from stockade.store.seals import Seal
from tests.engine.box_fakes import ALPINE

IMAGE = image_of(ALPINE)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (None, "70:70"),
        ("root", "root"),
        ("0", "root"),
        ("0:0", "root"),
        ("0:5", "0:5"),
        ("postgres", "70:71"),
        ("postgres:9", "70:9"),
        ("70", "70:71"),
        ("1000", "1000:0"),
        ("1000:1000", "1000:1000"),
        ("user", "user"),
        ("user:7", "1000:7"),
        ("65534:65534", "65534:65534"),
    ],
)
def test_a_user_is_named_as_the_image_knows_it(asked: str | None, found: str) -> None:
    assert checked_user_of(asked, IMAGE) == found


@pytest.mark.parametrize("asked", ["", "nobody", "1:", ":1", "1:wheel", "65535", "1:65535", "-1", "²", "1:²", "1:2:3"])
def test_a_user_that_the_image_does_not_know_is_refused(asked: str) -> None:
    with pytest.raises(Invalid, match="user"):
        checked_user_of(asked, IMAGE)


def test_the_host_knows_two_users() -> None:
    assert [checked_user_of(one, HOST_IMAGE) for one in (None, "user", "root")] == ["user", "user", "root"]


@pytest.mark.parametrize("name", ["a", "s 1/é", "x" * 255])
def test_a_snapshot_may_be_called_nearly_anything(name: str) -> None:
    assert checked_snapshot_name(name) == name


def test_ids_are_ulids_that_sort_as_time_goes() -> None:
    assert len({new_ulid(now=1.0) for _ in range(1000)}) == 1000
    made = [new_ulid(now=now) for now in (0.0, 0.001, 1.0, 1e9, 1.7e9, 1e10)]
    assert made == sorted(made)
    assert made[0].startswith("0" * 10)
    assert all(len(one) == 26 and set(one) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ") for one in made)
    assert new_ulid(now=1469918176.385).startswith("01ARYZ6S41")  # the specification's own example


def test_what_is_sealed_is_opened_by_its_key_for_its_place_only() -> None:
    seal = Seal("0f" * 32)
    sealed = seal.close(b"secret", about="box 1")
    assert seal.open(sealed, about="box 1") == b"secret"
    assert b"secret" not in sealed
    assert seal.close(b"secret", about="box 1") != sealed
    damaged = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for one, text, about in (
        (seal, sealed, "box 2"),
        (Seal("1e" * 32), sealed, "box 1"),
        (seal, damaged, "box 1"),
        (seal, b"", "box 1"),
    ):
        with pytest.raises(Fault):
            one.open(text, about=about)
