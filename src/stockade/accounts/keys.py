"""API keys: made here, shown once, kept as hashes.

A key is 256 random bits, so one round of SHA-256 is enough: there is nothing to guess that a slow hash would protect.
"""

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from stockade.errors import Conflict, Fault, NotFound
from stockade.model import Actor

__all__ = ["Key", "Keys", "new_secret"]

FILE_NAME = "keys.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Key:
    """What is kept of an API key."""

    id: str
    """Names the key in logs and metrics, and its bearer as an actor."""
    name: str
    hash: str
    """SHA-256 of the key, in hexadecimal."""
    preview: str
    """Its beginning and end, to recognise it by."""
    created: str
    """When it was made, UTC, ISO 8601."""
    templates: bool = True
    """See `Actor.templates`. Absent in files of earlier versions."""


def new_secret() -> str:
    """A key nobody has seen."""
    return f"sk_{secrets.token_hex(32)}"


def _hash(secret: str) -> str:
    # What a client presents may hold anything, lone surrogates too.
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def _describe(secret: str, *, id: str, name: str, templates: bool = True) -> Key:
    return Key(
        templates=templates,
        id=id,
        name=name,
        hash=_hash(secret),
        preview=f"{secret[:7]}…{secret[-4:]}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


class Keys:
    """The server's API keys. Changes are durable when the method returns."""

    def __init__(self, keys: Sequence[Key] = (), *, path: Path | None = None, preset: str = "") -> None:
        """Hold *keys*; with *path*, changes are written there.

        Args:
            preset: a further key that the operator chose. It is valid while this object lives and is never written, so
                that a server started without it, or with another, no longer takes it.
        """
        self._keys = tuple(keys)
        self._path = path
        self._preset = _describe(preset, id="preset", name="STOCKADE_API_KEY") if preset else None

    @classmethod
    def load(cls, data_dir: Path, *, preset: str = "") -> "Keys":
        """The keys of *data_dir*; none when it has no key file yet.

        Raises:
            Fault: the key file cannot be read or is damaged; it is left as it is.
        """
        path = data_dir / FILE_NAME
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != FORMAT:
                raise Fault(f"{path}: has format {document['format']!r}; this version of Stockade reads {FORMAT}")
            keys = [Key(**entry) for entry in document["keys"]]
        except FileNotFoundError:
            keys = []
        except OSError as error:
            raise Fault(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise Fault(
                f"{path}: is damaged ({error}). Restore it, or move it away and start again to get a new key"
            ) from error
        return cls(keys, path=path, preset=preset)

    def all(self) -> tuple[Key, ...]:
        """Every key that is valid now."""
        return (*self._keys, self._preset) if self._preset else self._keys

    def verify(self, presented: str) -> Actor | None:
        """Whose key *presented* is, or `None`. The time taken tells nothing about the keys."""
        digest = _hash(presented)
        found: Key | None = None
        for key in self.all():  # all of them, also after a hit
            if hmac.compare_digest(digest, key.hash):
                found = key
        return Actor(id=found.id, templates=found.templates) if found is not None else None

    def ensure_admin(self) -> str | None:
        """Make a first key when there is none.

        Returns:
            The new key, which nothing can show again, or `None` when there is one already.
        """
        return self.add("admin") if not self.all() else None

    def add(self, name: str, *, templates: bool = True) -> str:
        """Make a key and return it; only its hash is kept.

        Args:
            templates: see `Actor.templates`.

        Raises:
            Conflict: *name* is taken.
            Fault: the key file cannot be written; nothing has changed.
        """
        if any(key.name == name for key in self._keys):
            raise Conflict(f"there is a key named {name!r} already")
        secret = new_secret()
        self._replace(
            (*self._keys, _describe(secret, id=f"key_{secrets.token_hex(6)}", name=name, templates=templates))
        )
        return secret

    def set(self, name: str, *, templates: bool) -> Key:
        """Change the key that is called *name*, or has it as id, and return what is kept of it now.

        Raises:
            NotFound: there is no such key among those that are kept.
            Fault: the key file cannot be written; nothing has changed.
        """
        found = next((key for key in self._keys if name in (key.name, key.id)), None)
        if found is None:
            known = ", ".join(key.name for key in self._keys) or "none"
            raise NotFound(f"there is no key named {name!r}; known: {known}")
        changed = replace(found, templates=templates)
        self._replace(tuple(changed if key is found else key for key in self._keys))
        return changed

    def _replace(self, keys: tuple[Key, ...]) -> None:
        if self._path is not None:
            try:
                _write(self._path, json.dumps({"format": FORMAT, "keys": [asdict(key) for key in keys]}, indent=2))
            except OSError as error:
                raise Fault(f"{self._path}: cannot be written: {error.strerror}") from error
        self._keys = keys


def _write(path: Path, text: str) -> None:
    """Replace *path*: a crash at any moment leaves the old or the new text, and the new one once this has returned."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(
            os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w", encoding="utf-8"
        ) as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)  # the rename itself
    finally:
        os.close(directory)
