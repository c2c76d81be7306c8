"""Images as clients see them: pure functions."""

from typing import Any

from stockade.dialects.boxlite.translate import timestamp
from stockade.engine.image_references import Reference
from stockade.model.images import ImageRecord
from stockade.model.registries import RegistryCredential

__all__ = ["image_details", "image_listed", "image_pulled", "registry_object"]


def image_listed(image: ImageRecord) -> dict[str, Any]:
    """One of a list."""
    return _named(image) | {
        "size_bytes": image.size_bytes,
        "aliases": list(image.names),
        "digest": image.digest,
        "source": image.source,
        "used_at": timestamp(image.used_at),
    }


def image_pulled(image: ImageRecord) -> dict[str, Any]:
    """The answer to a pull."""
    return _named(image) | {
        "config_digest": image.digest,
        "layer_count": len(image.layers),
        "digest": image.digest,
        "size_bytes": image.size_bytes,
    }


def image_details(image: ImageRecord) -> dict[str, Any]:
    """All of one."""
    config = image.config
    reference = Reference.parse(image.reference)
    return {
        "name": reference.name,
        "tags": sorted({tag for name in (image.reference, *image.names) if (tag := Reference.parse(name).tag)}),
        "aliases": list(image.names),
        "curated": not image.account_id,
        "versions": [
            {
                "digest": image.digest,
                "size_bytes": image.size_bytes,
                "source_ref": image.reference,
                "recorded_at": timestamp(image.created_at),
            }
        ],
        "config": {
            "entrypoint": list(config.entrypoint),
            "cmd": list(config.command),
            "env": dict(config.env),
            "working_dir": config.cwd,
            "user": config.user,
            "exposed_ports": list(config.exposed_ports),
            "labels": dict(config.labels),
        },
        "layers": [{"diff_id": one.diff_id, "size_bytes": one.size_bytes} for one in image.layers],
        "source": image.source,
        "used_at": timestamp(image.used_at),
    }


def registry_object(found: RegistryCredential) -> dict[str, Any]:
    """A credential, without its password."""
    return {
        "id": found.id,
        "registry_host": found.registry_host,
        "repository_prefix": found.repository_prefix,
        "username": found.username,
        "created_at": timestamp(found.created_at),
    }


def _named(image: ImageRecord) -> dict[str, Any]:
    reference = Reference.parse(image.reference)
    return {
        "reference": image.reference,
        "repository": reference.name,
        "tag": reference.tag or "",
        "id": image.digest,
        "cached_at": timestamp(image.created_at),
    }
