"""What whoever makes an image, or the file of a box, may try, and who may have an image that is another account's."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import httpx
import pytest

from stockade.engine.box_parcels import ParcelWriter
from tests.app.serving import Server
from tests.dialects.boxlite.platform import Client, client_of, platform

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's warden has one user id and few limits"),
]
DIRECTORY, LINK, HARD, DEVICE = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE
Members = Sequence[tuple[str, Mapping[str, Any]]]
SRV = ("srv", {"type": DIRECTORY, "mode": 0o755})
XATTR = "SCHILY.xattr."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with platform(tmp_path_factory.mktemp("server"), STOCKADE_ACCOUNTS_WAITLIST="true") as server:
        yield server


@pytest.fixture
async def owner(server: Server, anyio_backend: str) -> AsyncIterator[Client]:
    async with client_of(server) as client:
        yield client


@pytest.fixture(scope="module")
def keys(server: Server) -> list[str]:
    """Of two other accounts."""
    made = [
        httpx.post(f"{server.url}/v1/waitlist", json={"email": f"{name}@example.org"}, timeout=60, trust_env=False)
        for name in ("ann", "bob")
    ]
    return [one.json()["key"] for one in made]


@pytest.fixture
async def strangers(server: Server, keys: list[str], anyio_backend: str) -> AsyncIterator[list[Client]]:
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as one,
        httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as two,
    ):
        for http, key in zip((one, two), keys, strict=True):
            http.headers["Authorization"] = f"Bearer {key}"
        yield [Client(http=http, base=server.url) for http in (one, two)]


@pytest.fixture
async def header(strangers: list[Client]) -> dict[str, Any]:
    """What an export says of a box that stands on the host image."""
    ann = strangers[0]
    box = await ann.create()
    content = (await ann.http.post(ann.box(box, "export"))).content
    await ann.drop(box)
    found: dict[str, Any] = json.JSONDecoder().raw_decode(content[content.index(b"{") :].decode("latin-1"))[0]
    return found


def tree(members: Members) -> bytes:
    """A tar of such members, which no `tar` would make."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, members_of in members:
            info = tarfile.TarInfo(name)
            content = members_of.get("content", b"")
            for attribute in set(members_of) - {"content"}:
                setattr(info, attribute, members_of[attribute])
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return archive.getvalue()


async def parcel(header: Mapping[str, Any], *parts: tuple[str, bytes]) -> bytes:
    """The file of a box, of whatever is put into it."""

    async def once(content: bytes) -> AsyncIterator[bytes]:
        yield content

    writer = ParcelWriter()
    pieces = [writer.begin(header)]
    for kind, content in parts:
        pieces += [piece async for piece in writer.part({"kind": kind}, once(content))]
    return b"".join([*pieces, writer.end()])


def configuration(*layers: bytes, **own: Any) -> bytes:
    """Of an image of these layers: archives, or what is said of them (`sha256:…`)."""
    said = [
        one.decode() if one.startswith(b"sha256:") else f"sha256:{hashlib.sha256(one).hexdigest()}" for one in layers
    ]
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    document = {"architecture": machine, "os": "linux", "config": own, "rootfs": {"type": "layers", "diff_ids": said}}
    return json.dumps(document).encode()


def digest_of(config: bytes) -> str:
    return f"sha256:{hashlib.sha256(config).hexdigest()}"


def of_image(header: Mapping[str, Any], digest: str) -> dict[str, Any]:
    return {**header, "image": {"reference": "made:up", "digest": digest}}


REFUSED: dict[str, Members] = {
    "a member above": [("../evil", {"content": b"x"})],
    "a member far above": [("a/../../../evil", {"content": b"x"})],
    "through a link to another part": [("l", {"type": LINK, "linkname": "../work"}), ("l/evil", {"content": b"x"})],
    "a hard link far above": [("h", {"type": HARD, "linkname": "../../../../etc/passwd"})],
    "a hard link to the host's": [("h", {"type": HARD, "linkname": "/etc/hostname"})],
    "a hard link by a link": [("l", {"type": LINK, "linkname": "/etc"}), ("h", {"type": HARD, "linkname": "l/passwd"})],
    "a device": [SRV, ("srv/mem", {"type": DEVICE, "devmajor": 1, "devminor": 1, "mode": 0o666})],
    "a disk of the host's": [SRV, ("srv/loop", {"type": tarfile.BLKTYPE, "devmajor": 7, "devminor": 0, "mode": 0o666})],
    "the root as a file": [(".", {"content": b"x"})],
    "the root as a link": [(".", {"type": LINK, "linkname": "/"})],
    "more than the disk holds": [SRV, ("srv/f", {"content": b"abc", "pax_headers": {"size": str(1 << 62)}})],
    "deeper than anything": [("/".join(["d"] * 3000), {"type": DIRECTORY, "mode": 0o755})],
    "a name without end": [("n" * 5000, {"content": b"x"})],
    "a hole without end": [
        SRV,
        ("srv/f", {"content": b"1\n4611686018427387904\n1\n".ljust(512, b"\0"),
                   "pax_headers": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "srv/f",
                                   "GNU.sparse.realsize": "4611686018427387904"}}),
    ],
}  # fmt: skip
CONTAINED: dict[str, Members] = {
    "an absolute name": [("/evil", {"content": b"x"})],
    "through a link to the root": [("l", {"type": LINK, "linkname": "/"}), ("l/evil", {"content": b"x"})],
    "a set-user-id program": [SRV, ("srv/s", {"content": b"#!/bin/sh\nid -u\n", "mode": 0o6755, "uid": 0})],
    "marks of an overlay on a directory": [
        ("srv", {"type": DIRECTORY, "mode": 0o755, "pax_headers": {
            XATTR + "user.overlay.redirect": "/usr/../../..", XATTR + "user.overlay.metacopy": "",
            XATTR + "trusted.overlay.opaque": "y", XATTR + "security.capability": "\x01\x00\x00\x02\x7f\x7f"}}),
    ],
    "marks of an overlay on a file": [
        SRV,
        ("srv/f", {"content": b"abc", "pax_headers": {
            XATTR + "user.overlay.redirect": "/etc/shadow", XATTR + "user.overlay.metacopy": "",
            XATTR + "user.overlay.origin": "zz"}}),
    ],
    "a root that hides the image": [(".", {"type": DIRECTORY, "mode": 0o755, "pax_headers": {
        XATTR + "user.overlay.opaque": "y", XATTR + "user.overlay.redirect": "/../.."}})],
    "links for what is ours": [
        ("proc", {"type": LINK, "linkname": "/etc"}), ("dev", {"type": LINK, "linkname": "../.."}),
        ("etc", {"type": LINK, "linkname": "/proc/self"}),
    ],
    "owners that nobody has": [SRV, ("srv/f", {"content": b"abc", "uid": 70000, "gid": 4294967295})],
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
async def test_a_hostile_tree_becomes_no_box(owner: Client, header: dict[str, Any], what: str) -> None:
    answer = await owner.http.post("/v1/boxes/import", content=await parcel(header, ("disk", tree(REFUSED[what]))))
    assert answer.status_code in (400, 422, 429), answer.text
    assert (await owner.http.get("/v1/boxes")).json()["boxes"] == []


@pytest.mark.parametrize("what", CONTAINED)
async def test_an_odd_tree_is_the_boxs_own_affair(owner: Client, header: dict[str, Any], what: str) -> None:
    answer = await owner.http.post("/v1/boxes/import", content=await parcel(header, ("disk", tree(CONTAINED[what]))))
    assert answer.status_code == 201, answer.text
    box = answer.json()["box_id"]
    check = (
        "id -u; test -c /dev/null && test -d /proc/self && test ! -w /usr/bin && test ! -e /etc/shadow.x; "
        "test ! -x /srv/s || /srv/s; head -c 3 /srv/f 2>/dev/null; grep CapEff /proc/self/status"
    )
    seen = (await owner.run(box, check)).split()
    assert {*seen[:-2]} <= {"1000", "abc", "abcCapEff:"}, seen
    assert int(seen[-1], 16) == 0
    assert not os.path.exists("/evil")
    await owner.drop(box)


@pytest.mark.parametrize("what", [*REFUSED, "a whiteout of all", "another layer than it says", "two for one", "none"])
async def test_a_hostile_layer_becomes_no_image(strangers: list[Client], header: dict[str, Any], what: str) -> None:
    layer = tree(REFUSED.get(what, [("x", {"content": what.encode()})]))
    config = configuration(layer)
    parts = [("layer", layer), ("config", config), ("disk", tree([]))]
    if what == "a whiteout of all":
        layer = tree([("../.wh.etc", {}), ("a/.wh...", {}), (".wh..", {})])
        config = configuration(layer)
        parts = [("layer", layer), ("config", config), ("disk", tree([]))]
    elif what == "another layer than it says":
        config = configuration(tree([("y", {})]))
        parts[1] = ("config", config)
    elif what == "two for one":
        parts.insert(0, ("layer", layer))
    elif what == "none":
        del parts[0]
    content = await parcel(of_image(header, digest_of(config)), *parts)
    if what == "a device":  # an image of another engine's has some; what is below `dev/` alone is left out
        assert b"srv/mem" in layer
    answer = await strangers[0].http.post("/v1/boxes/import", content=content)
    assert answer.status_code in (400, 422, 429), answer.text
    assert (await strangers[0].http.get("/v1/images")).json()["images"] == []
    assert (await strangers[0].http.get("/v1/boxes")).json()["boxes"] == []


async def test_an_image_of_another_accounts_is_not_there(strangers: list[Client], header: dict[str, Any]) -> None:
    """Not by its digest, nor its name; and who only knows what its layers are called does not get what is in them."""
    ann, bob = strangers
    secret = tree([("secret", {"content": b"of ann's alone"}), ("tmp", {"type": DIRECTORY, "mode": 0o1777})])
    config = configuration(secret)
    digest = digest_of(config)
    diff_id = f"sha256:{hashlib.sha256(secret).hexdigest()}".encode()
    content = await parcel(of_image(header, digest), ("layer", secret), ("config", config), ("disk", tree([])))
    made = await ann.http.post("/v1/boxes/import", content=content)
    assert made.status_code == 201, made.text
    (image,) = (await ann.http.get("/v1/images")).json()["images"]
    names = [digest, f"localhost/imported:{digest[7:19]}", f"localhost/imported@{digest}", str(image.get("reference"))]
    for name in names:
        path = f"/v1/images/{name.replace('/', '%2F')}"
        assert (await bob.http.get(path)).status_code == 404, name
        assert (await bob.http.delete(path)).status_code == 404, name
        assert (await bob.http.post(f"{path}/aliases", json={"alias": "mine:1"})).status_code in (400, 404), name
        refused = await bob.http.post("/v1/boxes", json={"image": name})
        assert 400 <= refused.status_code < 500, (name, refused.text)
        refused = await bob.http.post("/v1/images/pull", json={"reference": name})
        assert 400 <= refused.status_code < 500, (name, refused.text)
    other = tree([("other", {"content": b"of bob's"})])
    stolen = configuration(diff_id, Cmd=["x"])
    for parts in (
        [],
        [("config", config)],
        [("layer", other), ("config", config)],
        [("layer", other), ("config", stolen)],
        [("layer", b""), ("config", stolen)],
        [("layer", secret[:-1024]), ("config", stolen)],
    ):
        for named in (digest, digest_of(stolen)):
            content = await parcel(of_image(header, named), *parts, ("disk", tree([])))
            answer = await bob.http.post("/v1/boxes/import", content=content)
            assert answer.status_code in (400, 404, 422), (parts and parts[0][0], answer.text)
    assert (await bob.http.get("/v1/images")).json()["images"] == []
    # Whoever has the layer itself may bring it, and is alone with the image again.
    content = await parcel(
        of_image(header, digest_of(stolen)), ("layer", secret), ("config", stolen), ("disk", tree([]))
    )
    assert (await bob.http.post("/v1/boxes/import", content=content)).status_code == 201
    assert len((await ann.http.get("/v1/images")).json()["images"]) == 1
    for client in strangers:
        for box in (await client.http.get("/v1/boxes")).json()["boxes"]:
            await client.drop(box["box_id"])
