"""Layouts, archives, and the blobs in them."""

import gzip
import io
import os
import random
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade.engine.image_blobs import Archive, BadLayer, Budget
from stockade.engine.image_debian import Debian
from stockade.engine.image_layouts import DockerArchive, OciLayout
from stockade.engine.image_manifests import BadManifest
from stockade.engine.image_sources import ImageSource, ImageUnavailable
from stockade.errors import Invalid
from tests.engine.image_fakes import docker_archive, layer, made, oci_layout, sha256

pytestmark = pytest.mark.anyio

ONE = made(layer({"etc": None, "etc/passwd": b"root:x:0:0::/root:/bin/sh\n"}), layer({"b": b"2" * 3000}))
TWO = made(layer({"c": b"3"}), pack="zstd")


async def contents(source: ImageSource) -> tuple[bytes, ...]:
    """The archives of all layers."""
    told = await source.describe()
    return tuple([b"".join([piece async for piece in await source.open(one)]) for one in told.layers])


async def unpacked(blob: bytes, archive: bytes, *, most: int = 1 << 30, step: int = 1000) -> bytes:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(blob), step):
            yield blob[at : at + step]

    found = Archive(pieces(), diff_id=sha256(archive), budget=Budget(most))
    result = b"".join([piece async for piece in found])
    await found.finish()
    return result


async def test_a_layout_is_read(tmp_path: Path) -> None:
    source = OciLayout(oci_layout(tmp_path / "layout", ONE))
    told = await source.describe()
    assert (told.digest, told.config) == (ONE.digest, ONE.config)
    assert [(one.digest, one.size) for one in told.layers] == [(one.digest, one.size) for one in ONE.layers]
    assert await contents(source) == ONE.blobs


@pytest.mark.parametrize("is_old", [True, False])
async def test_a_docker_archive_is_read_without_being_unpacked(tmp_path: Path, is_old: bool) -> None:
    source = DockerArchive(docker_archive(tmp_path / "image.tar", ONE, is_old=is_old))
    told = await source.describe()
    assert told.digest == (sha256(ONE.config) if is_old else ONE.digest)
    assert told.names == ("app:1",)
    assert [one.diff_id for one in told.layers] == [sha256(archive) for archive in ONE.archives]
    assert await contents(source) == ONE.archives
    await source.close()
    assert os.listdir(tmp_path) == ["image.tar"]


async def test_a_layout_in_an_archive_is_read(tmp_path: Path) -> None:
    oci_layout(tmp_path / "layout", TWO)
    with tarfile.open(tmp_path / "layout.tar", "w") as archive:
        archive.add(tmp_path / "layout", arcname=".")
    source = DockerArchive(tmp_path / "layout.tar")
    assert (await source.describe()).digest == TWO.digest
    assert await contents(source) == TWO.blobs
    await source.close()


async def test_of_several_images_one_has_to_be_named(tmp_path: Path) -> None:
    archive = docker_archive(tmp_path / "images.tar", ONE, TWO, tags=("one:1", "two:1"))
    layout = oci_layout(tmp_path / "layout", ONE, TWO, names=("one:1", "two:1"))
    for source in (DockerArchive(archive), OciLayout(layout)):
        with pytest.raises(Invalid, match="one:1, two:1"):
            await source.describe()
        await source.close()
    for source in (DockerArchive(archive, name="two:1"), OciLayout(layout, name="two:1")):
        assert (await source.describe()).config == TWO.config
        await source.close()
    with pytest.raises(Invalid, match="has no image"):
        await OciLayout(layout, name="three").describe()


@pytest.mark.parametrize("which", ["manifest", "config", "layer"])
async def test_a_damaged_layout_is_refused(tmp_path: Path, which: str) -> None:
    path = oci_layout(tmp_path / "layout", ONE)
    content = {"manifest": ONE.manifest, "config": ONE.config, "layer": ONE.blobs[0]}[which]
    blob = path / "blobs" / "sha256" / sha256(content).removeprefix("sha256:")
    blob.write_bytes(content[:-1] + b"\xff")
    with pytest.raises(BadManifest, match="damaged"):
        await contents(OciLayout(path))


async def test_a_link_in_a_layout_is_not_followed(tmp_path: Path) -> None:
    path = oci_layout(tmp_path / "layout", ONE)
    blob = path / "blobs" / "sha256" / ONE.digest.removeprefix("sha256:")
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadManifest, match="missing"):
        await OciLayout(path).describe()


async def test_a_layer_that_is_a_link_to_another_is_read(tmp_path: Path) -> None:
    """So old Dockers name a layer that is there twice."""
    path = docker_archive(tmp_path / "image.tar", ONE)
    with tarfile.open(path) as old:
        members = [(member, old.extractfile(member)) for member in old]
        pieces = {member.name: file.read() for member, file in members if file is not None}
    name = next(name for name in pieces if name.endswith("/layer.tar"))
    content = pieces.pop(name)
    path.write_bytes(layer({**pieces, "there/layer.tar": content, name: "../there/layer.tar"}))
    source = DockerArchive(path)
    assert await contents(source) == ONE.archives
    await source.close()


async def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"hello" * 1000)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "packed").write_bytes(gzip.compress(layer({"a": b"b"})))
    (tmp_path / "other").write_bytes(layer({"a": b"b"}))
    (tmp_path / "cut").write_bytes(docker_archive(tmp_path / "whole", ONE).read_bytes()[:3000])
    for name, said in {
        "text": "no tar archive",
        "empty": "neither",
        "packed": "unpack it first",
        "other": "neither",
        "cut": "cut off",
    }.items():
        with pytest.raises(Invalid, match=said):
            await DockerArchive(tmp_path / name).describe()
    with pytest.raises(ImageUnavailable, match="No such file"):
        await DockerArchive(tmp_path / "none").describe()
    with pytest.raises(Invalid, match=r"no index\.json"):
        await OciLayout(tmp_path).describe()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9000), st.binary(min_size=1, max_size=8))
async def test_a_damaged_archive_is_refused_or_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, at: int, by: bytes
) -> None:
    directory = tmp_path_factory.mktemp("damaged")
    whole = docker_archive(directory / "image.tar", ONE).read_bytes()
    at %= len(whole)
    (directory / "image.tar").write_bytes(whole[:at] + by + whole[at + len(by) :])
    source = DockerArchive(directory / "image.tar")
    try:
        found = await contents(source)
    except Invalid:
        return
    finally:
        await source.close()
    told = await DockerArchive(directory / "image.tar").describe()
    assert tuple(map(sha256, found)) == tuple(one.diff_id for one in told.layers)


RANDOM = random.Random(7)
DATA = RANDOM.randbytes(70_000) + bytes(3 << 20) + RANDOM.randbytes(33)
ZSTD = zstandard.ZstdCompressor()
PACKED = {
    "plain": DATA,
    "gzip": gzip.compress(DATA),
    "gzip of two members": gzip.compress(DATA[:5]) + gzip.compress(DATA[5:]),
    "zstd": ZSTD.compress(DATA),
    "zstd of two frames": ZSTD.compress(DATA[:70_000]) + ZSTD.compress(DATA[70_000:]),
}


@pytest.mark.parametrize("name", PACKED)
async def test_a_blob_is_unpacked(name: str) -> None:
    assert await unpacked(PACKED[name], DATA) == DATA
    assert await unpacked(PACKED[name], DATA, step=len(PACKED[name])) == DATA


@pytest.mark.parametrize("name", PACKED)
async def test_a_blob_that_is_cut_off_or_too_large_is_refused(name: str) -> None:
    with pytest.raises(BadLayer):
        await unpacked(PACKED[name][:-1], DATA)
    with pytest.raises(BadLayer, match="more than 3000000 bytes"):
        await unpacked(PACKED[name], DATA, most=3_000_000)


@pytest.mark.parametrize("name", PACKED)
async def test_a_blob_with_other_content_is_refused(name: str) -> None:
    with pytest.raises(BadLayer, match="should be"):
        await unpacked(PACKED[name], DATA + b"x")


@pytest.mark.parametrize("blob", [b"BZh91AY" + bytes(50), b"\xfd7zXZ\x00" + bytes(50), PACKED["gzip"] + b"garbage"])
async def test_what_is_packed_otherwise_is_refused(blob: bytes) -> None:
    with pytest.raises(BadLayer):
        await unpacked(blob, DATA)


async def test_a_bomb_is_given_up_before_it_goes_off() -> None:
    """A few kilobytes that stand for a gigabyte."""
    buffer = io.BytesIO()
    with ZSTD.stream_writer(buffer, closefd=False) as writer:
        for _ in range(1024):
            writer.write(bytes(1 << 20))
    with pytest.raises(BadLayer, match="more than 16777216 bytes"):
        await unpacked(buffer.getvalue(), b"", most=1 << 24)


async def test_an_empty_blob_is_an_empty_archive() -> None:
    assert await unpacked(b"", b"") == b""


@pytest.mark.parametrize("packages", [["-oDpkg::Pre-Invoke=x"], ["a b"], ["A"], ["a,b"], ["a;b"], [""]])
def test_what_is_no_package_is_refused(tmp_path: Path, packages: list[str]) -> None:
    with pytest.raises(Invalid, match="no package's name"):
        Debian(packages, directory=tmp_path)


def test_what_is_no_suite_or_mirror_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="suite"):
        Debian(directory=tmp_path, suite="--help")
    with pytest.raises(Invalid, match="mirror"):
        Debian(directory=tmp_path, mirror="deb [trusted=yes] x")
