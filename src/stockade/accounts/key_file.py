"""`keys.json`: where keys were kept before there was a database. Read once, and then set aside."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from stockade.errors import Fault

__all__ = ["FileKey", "read_key_file", "set_aside"]

FILE_NAME = "keys.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class FileKey:
    """A key of the file."""

    name: str
    hash: str
    preview: str
    created_at: datetime
    templates: bool


def read_key_file(data_dir: Path) -> tuple[FileKey, ...]:
    """The keys of *data_dir*'s file; none when it has none.

    Raises:
        Fault: it cannot be read or is damaged; it is left as it is.
    """
    path = data_dir / FILE_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise Fault(f"{path}: has format {document['format']!r}; this version of Stockade reads {FORMAT}")
        return tuple(_key(entry) for entry in document["keys"])
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise Fault(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Fault(
            f"{path}: is damaged ({error}). Restore it, or move it away and start again to get a new key"
        ) from error


def set_aside(data_dir: Path) -> None:
    """Rename the file, now that the database has its keys. Where that may not be done it stays, and counts no more."""
    path = data_dir / FILE_NAME
    try:
        path.rename(path.with_name(f"{FILE_NAME}.imported"))
    except OSError:
        pass


def _key(entry: dict[str, object]) -> FileKey:
    hash = str(entry["hash"])
    if not re.fullmatch(r"[0-9a-f]{64}", hash):
        raise ValueError("a hash is 64 hexadecimal digits")
    made = datetime.fromisoformat(str(entry["created"]))
    return FileKey(
        name=str(entry["name"]),
        hash=hash,
        preview=str(entry["preview"]).replace("…", "..."),
        created_at=made if made.tzinfo is not None else made.replace(tzinfo=UTC),
        templates=bool(entry.get("templates", True)),
    )
