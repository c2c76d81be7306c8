"""Images read from a real registry."""

import hashlib
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import pytest

from stockade.config_boxes import RegistriesConfig
from stockade.engine.image_manifests import Platform, sha256_of
from stockade.engine.image_references import Reference
from stockade.engine.image_sources import ImageUnavailable, SourceLayer
from stockade.errors import Invalid
from stockade.model.registries import Login
from stockade.wire.registries import ImageMissing, Registries, RegistryNotAllowed, RegistrySource, session
from tests.engine.image_fakes import MadeImage, layer, made
from tests.registries import (
    INDEX,
    MANIFEST,
    PASSWORD,
    USERNAME,
    DockerRegistry,
    descriptor,
    for_platform,
    needs_docker_registry,
)

pytestmark = [pytest.mark.anyio, needs_docker_registry]
HERE = Platform.of_this_machine()
ELSEWHERE = Platform(architecture="s390x" if HERE.architecture != "s390x" else "amd64")


class Known:
    """Credentials that one account has for one registry."""

    def __init__(self, login: Login) -> None:
        self.login = login

    async def find(self, account_id: str, reference: Reference, /) -> Login | None:
        return self.login if account_id == "its-owner" else None


@pytest.fixture(scope="module")
def image() -> MadeImage:
    """Of two layers; the upper one takes many reads."""
    noise = random.Random(1).randbytes(3 << 20)
    return made(layer({"etc/release": b"1"}), layer({"noise": noise}), config={"Cmd": ["/bin/true"]})


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, image: MadeImage) -> Iterator[DockerRegistry]:
    registry = DockerRegistry(folder=tmp_path_factory.mktemp("registry"))
    registry.start()
    try:
        registry.push("team/app", "1", image)
        yield registry
    finally:
        registry.end()


@pytest.fixture(scope="module")
def private_registry(tmp_path_factory: pytest.TempPathFactory, image: MadeImage) -> Iterator[DockerRegistry]:
    registry = DockerRegistry(folder=tmp_path_factory.mktemp("private-registry"), is_private=True)
    registry.start()
    try:
        registry.push("team/app", "1", image)
        yield registry
    finally:
        registry.end()


@asynccontextmanager
async def source(
    config: RegistriesConfig, reference: str, *, login: Login | None = None, account_id: str = ""
) -> AsyncIterator[RegistrySource]:
    async with Registries(config, Known(login) if login else None) as registries:
        yield await registries.source(reference, account_id=account_id)


async def blob(source: RegistrySource, layer: SourceLayer) -> bytes:
    return b"".join([part async for part in await source.open(layer)])


async def test_an_image_is_read_whole_by_its_tag(registry: DockerRegistry, image: MadeImage) -> None:
    async with source(registry.config(), f"{registry.host}/team/app:1") as found:
        described = await found.describe()
        assert (described.digest, described.config) == (image.digest, image.config)
        assert not found.is_private
        blobs: dict[str, bytes] = {}

        async def fetch(number: int) -> None:
            one = described.layers[number]
            blobs[one.digest] = await blob(found, one)

        async with anyio.create_task_group() as group:  # as the store does
            for number in range(len(described.layers)):
                group.start_soon(fetch, number)
    assert [blobs[one.digest] for one in described.layers] == list(image.blobs)
    assert [one.diff_id for one in described.layers] == json.loads(image.config)["rootfs"]["diff_ids"]


async def test_an_image_is_read_by_its_digest(registry: DockerRegistry, image: MadeImage) -> None:
    async with source(registry.config(), f"{registry.host}/team/app@{image.digest}") as found:
        assert (await found.describe()).digest == image.digest


async def test_of_an_index_the_image_for_this_machine_is_taken(registry: DockerRegistry, image: MadeImage) -> None:
    other = for_platform(made(layer({"other": b"2"})), ELSEWHERE)
    registry.push("team/many", "other", other)
    registry.push("team/many", "own", image)
    entries = [
        descriptor(one.manifest, MANIFEST, platform={"os": "linux", "architecture": machine.architecture})
        for one, machine in ((other, ELSEWHERE), (image, HERE))
    ]
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
    registry.push_manifest("team/many", "1", index, INDEX)
    async with source(registry.config(), f"{registry.host}/team/many:1") as found:
        assert (await found.describe()).digest == image.digest
    async with source(registry.config(), f"{registry.host}/team/many@{sha256_of(index)}") as found:
        assert (await found.describe()).digest == image.digest
    only_others = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries[:1]}).encode()
    registry.push_manifest("team/many", "2", only_others, INDEX)
    async with source(registry.config(), f"{registry.host}/team/many:2") as found:
        with pytest.raises(Invalid, match=f"there are: linux/{ELSEWHERE.architecture}"):
            await found.describe()


@pytest.mark.parametrize("name", ["team/app:2", "nobody/none:1", "team/app@sha256:" + "0" * 64])
async def test_what_is_not_there_is_named_with_what_the_registry_says(registry: DockerRegistry, name: str) -> None:
    async with source(registry.config(), f"{registry.host}/{name}") as found:
        with pytest.raises(ImageMissing, match=r"no such image: (MANIFEST|NAME)_UNKNOWN") as caught:
            await found.describe()
    assert caught.value.code == "image.not_found"


async def test_a_private_image_is_its_owners_alone(private_registry: DockerRegistry, image: MadeImage) -> None:
    reference = f"{private_registry.host}/team/app:1"
    config = private_registry.config()
    good = Login(username=USERNAME, password=PASSWORD)
    async with source(config, reference, login=good, account_id="its-owner") as found:
        described = await found.describe()
        assert found.is_private
        assert await blob(found, described.layers[0]) == image.blobs[0]
    async with source(config, reference, login=good, account_id="somebody else") as found:
        with pytest.raises(ImageMissing, match="or none without credentials"):
            await found.describe()
        assert not found.is_private
    wrong = replace(good, password="something else")
    async with source(config, reference, login=wrong, account_id="its-owner") as found:
        with pytest.raises(ImageMissing, match=f"does not let '{USERNAME}' in") as caught:
            await found.describe()
    assert wrong.password not in str(caught.value)


async def test_a_registry_must_be_allowed_public_and_encrypted(
    registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "FIRST_WAIT_S", 0.01)
    reference = f"{registry.host}/team/app:1"
    async with Registries(registry.config(allowed=("docker.io",))) as registries:
        with pytest.raises(RegistryNotAllowed, match=r"from: docker\.io"):
            await registries.source(reference)
    async with source(RegistriesConfig(insecure=(registry.host,)), reference) as found:
        with pytest.raises(RegistryNotAllowed, match="not public"):
            await found.describe()
    async with source(RegistriesConfig(permit_private=("127.0.0.0/8",)), reference) as found:
        with pytest.raises(ImageUnavailable, match="ConnectError"):  # TLS, to one that does not speak it
            await found.describe()


async def test_a_layer_that_the_registry_does_not_have_is_missing(registry: DockerRegistry) -> None:
    async with source(registry.config(), f"{registry.host}/team/app:1") as found:
        described = await found.describe()
        none = replace(described.layers[0], digest="sha256:" + hashlib.sha256(b"none").hexdigest())
        with pytest.raises(ImageMissing, match="BLOB_UNKNOWN"):
            await blob(found, none)
