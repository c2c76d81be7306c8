"""What an export of a box says of it: written from the record, and read with distrust.

Not in it: values of secrets (whoever has the file would have them), volumes (others' disks), and what only this host
knows: its ports, ids, times. Their names are, for whoever looks into the file.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, NoReturn

from stockade.engine.box_parcels import BadParcel
from stockade.engine.image_manifests import Platform
from stockade.model import Box, BoxRequest, Limits, Network, NetworkMode, Port, Protocol
from stockade.model.images import ImageConfig

__all__ = ["BoxManifest", "image_configuration", "manifest_of", "parsed_manifest"]

_MOST_WORDS = 10_000
_MOST_TEXT = 256 << 10


@dataclass(frozen=True, kw_only=True)
class BoxManifest:
    """What is read of it."""

    image: str
    """The reference that the box was made from."""
    image_digest: str
    """Of the image that it stands on; of an image of the server's own, its name."""
    request: BoxRequest
    """A box like it, without a name. Its image is yet to be said."""


def manifest_of(box: Box, *, disk_bytes: int, made_at: datetime, version: str) -> dict[str, Any]:
    """What is written of a box.

    Args:
        disk_bytes: what its disk holds, for whoever wants to know before reading it all.
    """
    limits = {name: None if value == math.inf else value for name, value in asdict(box.limits).items()}
    network = asdict(box.network)
    network["ports"] = [{"container": port.container, "protocol": port.protocol.value} for port in box.network.ports]
    return {
        "version": version,
        "made_at": made_at.isoformat(),
        "disk_bytes": disk_bytes,
        "image": {"reference": box.image, "digest": box.image_digest},
        "box": {
            "name": box.name,
            "entrypoint": list(box.entrypoint),
            "command": list(box.command),
            "env": dict(box.env),
            "cwd": box.cwd,
            "user": box.user,
            "terminal": box.terminal,
            "limits": limits,
            "network": network,
            "drop_capabilities": list(box.drop_capabilities),
            "labels": dict(box.labels),
            "auto_stop_s": box.auto_stop_s,
            "auto_delete_s": box.auto_delete_s,
            "auto_resume": box.auto_resume,
        },
        "left_out": {
            "secrets": [{"name": one.name, "hosts": list(one.hosts)} for one in box.secrets],
            "mounts": [{"path": one.path, "read_only": one.read_only} for one in box.mounts],
        },
    }


def parsed_manifest(document: Mapping[str, Any], *, name: str | None, dialect: str) -> BoxManifest:
    """What is said of a box, as far as it can be known without making one.

    Raises:
        BadParcel: it is not what we write.
    """
    image, box = _Told(document).part("image"), _Told(document).part("box")
    request = BoxRequest(
        name=name,
        image="",
        entrypoint=box.words("entrypoint"),
        command=box.words("command"),
        env=box.texts("env"),
        cwd=box.text("cwd"),
        user=box.text("user"),
        terminal=box.flag("terminal"),
        limits=_limits(box.part("limits")),
        network=_network(box.part("network")),
        drop_capabilities=box.words("drop_capabilities"),
        labels=box.texts("labels"),
        auto_stop_s=box.time("auto_stop_s"),
        auto_delete_s=box.time("auto_delete_s"),
        auto_resume=box.flag("auto_resume"),
        dialect=dialect,
    )
    return BoxManifest(image=image.text("reference"), image_digest=image.text("digest"), request=request)


def image_configuration(config: ImageConfig, diff_ids: Sequence[str]) -> bytes:
    """The configuration, in JSON as OCI has it, of an image that says *config* of itself and has these layers.

    The same for the same image, so that it has the same digest wherever it goes.
    """
    own = {
        "Entrypoint": list(config.entrypoint),
        "Cmd": list(config.command),
        "Env": [f"{name}={value}" for name, value in config.env.items()],
        "WorkingDir": config.cwd,
        "User": config.user,
        "ExposedPorts": {port: {} for port in config.exposed_ports},
        "Labels": dict(config.labels),
    }
    platform = Platform.of_this_machine()
    document = {
        "architecture": platform.architecture,
        "os": platform.os,
        "config": own,
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


class _Told:
    """Some of a document that anybody may have written."""

    def __init__(self, document: Mapping[str, Any], where: str = "") -> None:
        self._document = document
        self._where = where

    def _refuse(self, name: str) -> NoReturn:
        raise BadParcel(f"the export of the box is damaged: {self._where}{name} is not what it should be")

    def part(self, name: str) -> "_Told":
        found = self._document.get(name)
        if not isinstance(found, dict):
            self._refuse(name)
        return _Told(found, f"{self._where}{name}.")

    def parts(self, name: str) -> "list[_Told]":
        found = self._list(name)
        if not all(isinstance(one, dict) for one in found):
            self._refuse(name)
        return [_Told(one, f"{self._where}{name}.") for one in found]

    def text(self, name: str) -> str:
        found = self._document.get(name)
        if not _is_text(found):
            self._refuse(name)
        return str(found)

    def flag(self, name: str) -> bool:
        found = self._document.get(name)
        if not isinstance(found, bool):
            self._refuse(name)
        return found

    def number(self, name: str) -> float | int:
        """Infinity where it says `null`, as JSON has no word for it."""
        found = self._document.get(name, name)
        if found is None:
            return math.inf
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < 1 << 62:
            self._refuse(name)
        return found

    def time(self, name: str) -> float | None:
        found = self.number(name)
        return None if found == math.inf else float(found)

    def words(self, name: str) -> tuple[str, ...]:
        found = self._list(name)
        if not all(map(_is_text, found)):
            self._refuse(name)
        return tuple(found)

    def some_words(self, name: str) -> tuple[str, ...] | None:
        return None if self._document.get(name, name) is None else self.words(name)

    def texts(self, name: str) -> dict[str, str]:
        found = self._document.get(name)
        if not isinstance(found, dict) or len(found) > _MOST_WORDS or not all(map(_is_text, (*found, *found.values()))):
            self._refuse(name)
        return dict(found)

    def _list(self, name: str) -> list[Any]:
        found = self._document.get(name)
        if not isinstance(found, list) or len(found) > _MOST_WORDS:
            self._refuse(name)
        return found


def _is_text(value: object) -> bool:
    if not isinstance(value, str) or len(value) > _MOST_TEXT or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape
        return False
    return True


def _limits(told: _Told) -> Limits:
    values: dict[str, Any] = {}
    for one in fields(Limits):
        value = told.number(one.name)
        values[one.name] = float(value) if one.type in (float, "float") else value
        if one.type in (int, "int") and not isinstance(value, int):
            raise BadParcel(f"the export of the box is damaged: box.limits.{one.name} is no whole number")
    return Limits(**values)


def _network(told: _Told) -> Network:
    try:
        return Network(
            mode=NetworkMode(told.text("mode")),
            ports=tuple(
                Port(container=int(one.number("container")), protocol=Protocol(one.text("protocol")))
                for one in told.parts("ports")
            ),
            allow_cidrs=told.some_words("allow_cidrs"),
            allow_domains=told.some_words("allow_domains"),
        )
    except (ValueError, OverflowError):
        raise BadParcel("the export of the box is damaged: box.network is not what it should be") from None
