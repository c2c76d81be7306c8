"""A real registry for the tests: Debian's docker-registry, in a folder of its own; and images to push to it."""

import json
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from stockade.config_boxes import RegistriesConfig
from stockade.engine.image_manifests import Platform
from tests.engine.image_fakes import MadeImage, sha256

__all__ = [
    "INDEX",
    "MANIFEST",
    "PASSWORD",
    "USERNAME",
    "DockerRegistry",
    "by_digest",
    "descriptor",
    "for_platform",
    "needs_docker_registry",
]

PROGRAM = shutil.which("docker-registry")
START_S = 60.0
USERNAME = "robot"
PASSWORD = "a registry password"
_HTPASSWD = "$2b$04$2CUTpF7qSXxNmPQgQ3s/A.eFI3UoJvJoJ9nogoTOe0x7R2er0UkJy"
needs_docker_registry = pytest.mark.skipif(PROGRAM is None, reason="docker-registry is not installed")

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def descriptor(blob: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha256(blob), "size": len(blob), **more}


def for_platform(image: MadeImage, platform: Platform) -> MadeImage:
    """The same, for another machine."""
    config = json.dumps(json.loads(image.config) | {"architecture": platform.architecture}).encode()
    manifest = json.loads(image.manifest)
    manifest["config"] = descriptor(config, manifest["config"]["mediaType"])
    return replace(image, config=config, manifest=json.dumps(manifest).encode())


def by_digest(image: MadeImage) -> dict[str, bytes]:
    """What a registry has of an image, but its manifest."""
    return {sha256(one): one for one in (image.config, *image.blobs)}


@dataclass(kw_only=True)
class DockerRegistry:
    """Listens on a port of the loopback; whoever has the password may push."""

    folder: Path
    is_private: bool = False
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = field(default=None)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def config(self, **more: Any) -> RegistriesConfig:
        """Settings with which it may be asked."""
        return RegistriesConfig(insecure=(self.host,), permit_private=("127.0.0.0/8",), **more)

    def start(self) -> None:
        assert PROGRAM is not None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        settings: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(self.folder / "data")}},
            "http": {"addr": self.host},
        }
        if self.is_private:
            (self.folder / "htpasswd").write_text(f"{USERNAME}:{_HTPASSWD}\n")
            settings["auth"] = {"htpasswd": {"realm": "tests", "path": str(self.folder / "htpasswd")}}
        (self.folder / "config.yml").write_text(json.dumps(settings))  # JSON is YAML, too
        self.process = subprocess.Popen(
            [PROGRAM, "serve", str(self.folder / "config.yml")],
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "log").open("wb"),
        )
        try:
            deadline = time.monotonic() + START_S
            while not self._answers():
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline, "docker-registry did not come up"
                time.sleep(0.02)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(START_S)
            self.process = None

    def push(self, repository: str, tag: str, image: MadeImage) -> None:
        """Put an image there."""
        with self._client() as client:
            for digest, blob in by_digest(image).items():
                place = client.post(f"/v2/{repository}/blobs/uploads/").raise_for_status().headers["location"]
                client.put(httpx.URL(place).copy_merge_params({"digest": digest}), content=blob).raise_for_status()
        self.push_manifest(repository, tag, image.manifest, MANIFEST)

    def push_manifest(self, repository: str, tag: str, manifest: bytes, media_type: str) -> None:
        with self._client() as client:
            client.put(
                f"/v2/{repository}/manifests/{tag}", content=manifest, headers={"content-type": media_type}
            ).raise_for_status()

    def _client(self) -> httpx.Client:
        login = (USERNAME, PASSWORD) if self.is_private else None
        return httpx.Client(base_url=f"http://{self.host}", auth=login, trust_env=False, timeout=START_S)

    def _answers(self) -> bool:
        try:
            with self._client() as client:
                return client.get("/v2/").is_success
        except httpx.TransportError:
            return False
