"""What an image says of itself, read with distrust: its configuration, and the users that it has.

The format is `config.md` of opencontainers/image-spec, which is Docker's.
"""

import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stockade.engine.image_manifests import MOST_CONFIG_BYTES, BadManifest, Platform, diff_ids
from stockade.errors import Invalid
from stockade.model.images import ImageConfig, ImageUser

__all__ = ["MOST_ID", "ParsedConfig", "parse_config", "parse_groups", "parse_users", "resolve_user", "user_ids"]

MOST_ID = 65534
"""The highest user or group that a sandbox has (65535 is nobody's: the kernel's own)."""

_MOST_WORDS = 1000
_MOST_TEXT = 32 << 10
"""Characters of one word, value or label."""
_MOST_USERS = 2000
_MOST_PORTS = 1000
_PORT = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp|sctp))?", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)
_NAME = re.compile(r"[^\0:\n/]{1,256}")


@dataclass(frozen=True, kw_only=True)
class ParsedConfig:
    """An image's configuration, as far as it can be known without its files."""

    config: ImageConfig
    """Without `users`, and with `user` as the image has it: a name, a number, or either of each with a group."""
    diff_ids: tuple[str, ...]
    """Digests of its layers' archives, the lowest first."""


def parse_config(content: bytes, *, most_layers: int = 127) -> ParsedConfig:
    """The configuration of an image in its JSON.

    Raises:
        BadManifest: it is damaged, of another platform, has too many layers, or says what no sandbox can have.
    """
    if len(content) > MOST_CONFIG_BYTES:
        raise BadManifest(f"the configuration has more than {MOST_CONFIG_BYTES} bytes")
    layers = diff_ids(content, wanted=Platform.of_this_machine())
    if not layers:
        raise BadManifest("the image has no layers")
    if len(layers) > most_layers:
        raise BadManifest(f"the image has {len(layers)} layers; {most_layers} is the most (registries.most_layers)")
    document = json.loads(content)
    own = document.get("config") or {}
    if not isinstance(own, dict):
        raise BadManifest("the configuration: config is no object")
    config = ImageConfig(
        entrypoint=_command(own, "Entrypoint"),
        command=_command(own, "Cmd"),
        env=_environment(_words(own, "Env")),
        cwd=_directory(own),
        user=_text(own.get("User") or "", what="User") or "root",
        exposed_ports=_ports(own),
        labels=_labels(own),
    )
    return ParsedConfig(config=config, diff_ids=layers)


def parse_users(passwd: bytes) -> dict[str, ImageUser]:
    """The users of an `/etc/passwd`, by name. What no sandbox can have, or is damaged, is left out."""
    users: dict[str, ImageUser] = {}
    for fields in _lines(passwd, 6):
        name, _, uid, gid, _, home = fields[:6]
        if _is_id(uid) and _is_id(gid) and name not in users and len(users) < _MOST_USERS:
            users[name] = ImageUser(uid=int(uid), gid=int(gid), home=_home(home))
    return users


def parse_groups(group: bytes) -> dict[str, int]:
    """The groups of an `/etc/group`, by name; as `parse_users`."""
    groups: dict[str, int] = {}
    for fields in _lines(group, 3):
        if _is_id(fields[2]) and fields[0] not in groups and len(groups) < _MOST_USERS:
            groups[fields[0]] = int(fields[2])
    return groups


def resolve_user(text: str, users: Mapping[str, ImageUser], groups: Mapping[str, int] | None = None) -> str:
    """*text* (`root`, `app`, `1000`, `1000:1000`, `app:staff`) as `root` or `UID:GID`: see `ExecSpec.user`.

    A user without a group has the one that the image's `/etc/passwd` gives it, and a number that is not there group 0,
    as with Docker.

    Raises:
        Invalid: the image has no such user or group, or it is above 65534.
    """
    user, has_group, group = text.partition(":")
    known = users.get(user)
    if known is None and _NUMBER.fullmatch(user):
        uid = _checked_id(user, text)
        known = next((one for one in users.values() if one.uid == uid), ImageUser(uid=uid, gid=0, home="/"))
    if known is None and user in ("root", ""):
        known = ImageUser(uid=0, gid=0, home="/root")
    if known is None:
        shown = ", ".join(list(users)[:20])
        raise Invalid(f"user: the image has no user {user!r}; it has: {shown or 'none (use a number)'}")
    gid = known.gid
    if has_group:
        if groups and group in groups:
            gid = groups[group]
        elif _NUMBER.fullmatch(group):
            gid = _checked_id(group, text)
        elif group == "root":
            gid = 0
        else:
            raise Invalid(f"user: the image has no group {group!r}; name it by its number")
    return "root" if known.uid == gid == 0 else f"{known.uid}:{gid}"


def user_ids(user: str) -> tuple[int, int]:
    """UID and GID of what `resolve_user` returned."""
    if user == "root":
        return 0, 0
    uid, _, gid = user.partition(":")
    return int(uid), int(gid)


def _command(own: Mapping[str, Any], name: str) -> tuple[str, ...]:
    words = _words(own, name)
    return () if words == ("",) else words


def _words(own: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = own.get(name)
    if value is None:
        return ()
    if isinstance(value, str):  # some builders write one word so
        value = [value]
    if not isinstance(value, list) or len(value) > _MOST_WORDS:
        raise BadManifest(f"the configuration: config.{name} must be a list of {_MOST_WORDS} words at most")
    return tuple(_text(word, what=name) for word in value)


def _text(value: object, *, what: str) -> str:
    if not isinstance(value, str) or len(value) > _MOST_TEXT or "\0" in value or not _is_unicode(value):
        raise BadManifest(f"the configuration: config.{what} holds what is no text of {_MOST_TEXT} characters at most")
    return value


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape
        return False
    return True


def _environment(words: Sequence[str]) -> dict[str, str]:
    env: dict[str, str] = {}
    for word in words:
        name, has_value, value = word.partition("=")
        if not name:
            raise BadManifest(f"the configuration: config.Env: {word[:100]!r} has no name")
        if has_value:
            env[name] = value
    return env


def _directory(own: Mapping[str, Any]) -> str:
    path = _text(own.get("WorkingDir") or "/", what="WorkingDir")
    if len(path) > 4000:
        raise BadManifest("the configuration: config.WorkingDir is longer than a path can be")
    return "/" + posixpath.normpath(posixpath.join("/", path)).lstrip("/")


def _labels(own: Mapping[str, Any]) -> dict[str, str]:
    value = own.get("Labels") or {}
    if not isinstance(value, dict) or len(value) > _MOST_WORDS:
        raise BadManifest(f"the configuration: config.Labels must be an object of {_MOST_WORDS} members at most")
    return {_text(name, what="Labels"): _text(text, what="Labels") for name, text in value.items()}


def _ports(own: Mapping[str, Any]) -> tuple[str, ...]:
    value = own.get("ExposedPorts") or {}
    if not isinstance(value, dict) or len(value) > _MOST_PORTS:
        raise BadManifest(f"the configuration: config.ExposedPorts must be an object of {_MOST_PORTS} members at most")
    ports: list[str] = []
    for text in value:
        found = _PORT.fullmatch(text)
        if found is None:
            raise BadManifest(f"the configuration: config.ExposedPorts: {text[:100]!r} is no port")
        first, last, protocol = int(found[1]), int(found[2] or found[1]), found[3] or "tcp"
        if not 1 <= first <= last <= 65535:
            raise BadManifest(f"the configuration: config.ExposedPorts: {text[:100]!r} is no port")
        ports += (f"{port}/{protocol}" for port in range(first, min(last, first + _MOST_PORTS - len(ports)) + 1))
    return tuple(sorted(set(ports[:_MOST_PORTS]), key=_port_order))


def _port_order(port: str) -> tuple[int, str]:
    number, _, protocol = port.partition("/")
    return int(number), protocol


def _lines(content: bytes, least: int) -> list[list[str]]:
    split = (line.split(":") for line in content.decode(errors="replace").split("\n"))
    return [fields for fields in split if len(fields) >= least and _NAME.fullmatch(fields[0])]


def _is_id(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and int(text) <= MOST_ID


def _checked_id(number: str, text: str) -> int:
    if int(number) > MOST_ID:
        raise Invalid(f"user: {text[:100]!r} names an id above {MOST_ID}, which sandboxes do not have")
    return int(number)


def _home(path: str) -> str:
    return path if path.startswith("/") and len(path) <= 1024 and path.isprintable() else "/"
