"""Manifests and indexes: what they say, and what is refused; and images packed for a server."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.engine.image_layouts import DockerArchive
from stockade.engine.image_manifests import (
    BadManifest,
    Descriptor,
    Index,
    Manifest,
    Platform,
    chosen,
    diff_ids,
    parsed,
    sha256_of,
)
from stockade.engine.image_packing import packed
from tests.engine.image_fakes import FakeSource, layer, made

DIGEST = sha256_of(b"")
ENTRY = {"digest": DIGEST, "size": 1}


def body(**members: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, **members}).encode()


def entry(architecture: str, variant: str = "", os: str = "linux") -> Descriptor:
    made_for = Platform(architecture=architecture, variant=variant, os=os)
    return Descriptor(digest=sha256_of(str(made_for).encode()), size=1, platform=made_for)


@pytest.mark.parametrize(
    ("there", "wanted", "expected"),
    [
        (["arm64", "amd64"], ("amd64", ""), 1),
        (["amd64", "arm64"], ("arm64", "v8"), 1),
        (["arm64/v9", "arm64/v8"], ("arm64", "v8"), 1),
        (["arm64/v9"], ("arm64", "v8"), 0),
        (["arm/v6", "arm/v7"], ("arm", "v7"), 1),
        (["arm/v6"], ("arm", "v7"), None),
        (["amd64", "amd64"], ("amd64", ""), 0),
        (["s390x"], ("amd64", ""), None),
        ([], ("amd64", ""), None),
    ],
)
def test_the_entry_of_this_machine_is_chosen(there: list[str], wanted: tuple[str, str], expected: int | None) -> None:
    entries = tuple(entry(*one.split("/")) for one in there)
    platform = Platform(architecture=wanted[0], variant=wanted[1])
    if expected is None:
        with pytest.raises(BadManifest, match=f"no image for {platform}"):
            chosen(Index(manifests=entries), platform)
    else:
        assert chosen(Index(manifests=entries), platform) is entries[expected]


def test_another_system_is_not_chosen() -> None:
    with pytest.raises(BadManifest, match="windows/amd64"):
        chosen(Index(manifests=(entry("amd64", os="windows"),)), Platform(architecture="amd64"))


def test_what_is_told_of_itself_counts_before_what_others_say() -> None:
    found = parsed(body(config=ENTRY, layers=[ENTRY]), "application/vnd.oci.image.manifest.v1+json; charset=x")
    assert found == Manifest(config=Descriptor(digest=DIGEST, size=1), layers=(Descriptor(digest=DIGEST, size=1),))
    assert isinstance(parsed(body(manifests=[ENTRY])), Index)
    index = "application/vnd.oci.image.index.v1+json"
    for wrong in (body(config=ENTRY, layers=[], mediaType=index), body(manifests=[], config=ENTRY), body()):
        with pytest.raises(BadManifest):
            parsed(wrong)
    with pytest.raises(BadManifest):
        parsed(body(config=ENTRY, layers=[]), index)


@pytest.mark.parametrize(
    "config", [b"", b"{}", b'{"rootfs": []}', b'{"rootfs": {"diff_ids": ["sha512:1"]}}', b'{"rootfs": {"diff_ids": 1}}']
)
def test_a_configuration_must_name_its_layers(config: bytes) -> None:
    with pytest.raises(BadManifest):
        diff_ids(config)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(DIGEST),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["config", "layers", "manifests", "mediaType", "digest", "size", "platform", "os", "rootfs"]
            )
            | st.text(max_size=8),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["config", "layers", "manifests", "mediaType", "rootfs"]), JSON), st.text())
def test_no_document_does_anything_but_be_refused(document: dict[str, Any], media_type: str) -> None:
    for work in (lambda text: parsed(text, media_type), diff_ids):
        with contextlib.suppress(BadManifest):
            work(json.dumps(document | {"schemaVersion": 2}).encode())


@pytest.mark.anyio
@pytest.mark.parametrize("pack", ["", "gzip"])
async def test_an_image_that_was_packed_is_the_same(tmp_path: Path, pack: str) -> None:
    image = made(layer({"a": b"1" * 700}), layer({"b": b"2"}), layer({"a": b"1" * 700}), pack=pack)
    path = tmp_path / "image.tar"
    path.write_bytes(b"".join([part async for part in packed(FakeSource(image))]))
    archive = DockerArchive(path)
    try:
        found = await archive.describe()
        assert found.config == image.config
        assert [(one.digest, one.size) for one in found.layers] == [(one.digest, one.size) for one in image.layers]
        for one, blob in zip(found.layers, image.blobs, strict=True):
            assert b"".join([part async for part in await archive.open(one)]) == blob
    finally:
        await archive.close()
