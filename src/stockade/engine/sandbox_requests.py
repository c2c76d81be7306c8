"""What a request for a sandbox, or for a process in one, may say; from it comes the record of the sandbox to be."""

import ipaddress
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime

from stockade.engine.images import Image
from stockade.engine.limits import LimitPolicy
from stockade.errors import Invalid, InvalidLimit
from stockade.model import (
    Actor,
    LimitOverrides,
    Limits,
    Network,
    NetworkMode,
    Port,
    Protocol,
    Sandbox,
    SandboxRequest,
    SandboxState,
)

__all__ = ["checked_command", "checked_environment", "checked_path", "checked_user", "new_sandbox"]

MOST_PORTS = 64
"""Ports of one sandbox that may be exposed, beside the one that leads to the bound port."""

_USER = re.compile(r"([0-9]{1,5}):([0-9]{1,5})")
_HIGHEST_ID = 65534
_ID = re.compile(r"[a-z0-9_-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DOMAIN = re.compile(r"(?:\*\.)?(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def new_sandbox(actor: Actor, request: SandboxRequest, image: Image, *, limits: LimitPolicy, now: datetime) -> Sandbox:
    """The record of the sandbox that *request* asks for: CREATING, with everything filled in that it left open.

    Raises:
        Invalid: something in it can never be.
        InvalidLimit: a limit is above the server's maximum or what the actor may have.
    """
    if not _ID.fullmatch(request.id):
        raise Invalid(f"id: {request.id!r} must be 1 to 64 of a-z, 0-9, _ and -")
    if request.secret_digest is not None and not _DIGEST.fullmatch(request.secret_digest):
        raise Invalid("secret_digest: must be the SHA-256 of a secret, in 64 hexadecimal digits")
    return Sandbox(
        id=request.id,
        account_id=actor.account_id,
        key_id=actor.id,
        dialect=request.dialect,
        state=SandboxState.CREATING,
        image=request.image,
        command=checked_command(image.command if request.command is None else request.command),
        env=checked_environment(request.env),
        cwd=image.cwd if request.cwd is None else checked_path(request.cwd, what="cwd"),
        user=checked_user(image.user if request.user is None else request.user),
        limits=_checked_limits(actor, request.limits, limits),
        network=_checked_network(request.network),
        labels=dict(request.labels),
        created_at=now,
        secret_digest=request.secret_digest,
        backend=request.backend,
    )


def checked_command(command: Iterable[str]) -> tuple[str, ...]:
    """*command*, if a process can be started by it; an empty one is none.

    Raises:
        Invalid: the program's name is empty, or an argument holds a NUL character.
    """
    words = tuple(command)
    if words and not words[0]:
        raise Invalid("command: the program's name is empty")
    if any("\0" in word for word in words):
        raise Invalid("command: an argument must not hold a NUL character")
    return words


def checked_environment(env: Mapping[str, str]) -> dict[str, str]:
    """*env*, if a process can have it.

    Raises:
        Invalid: a name is empty or holds `=`, or something holds a NUL character.
    """
    for name, value in env.items():
        if not name or "=" in name or "\0" in name:
            raise Invalid(f"env: {name!r} cannot be the name of a variable")
        if "\0" in value:
            raise Invalid(f"env: the value of {name} must not hold a NUL character")
    return dict(env)


def checked_path(path: str, *, what: str, base: str | None = None) -> str:
    """*path* as an absolute one without detours.

    Args:
        what: the name of the member, for messages.
        base: what a relative path is relative to; `None` refuses those.

    Raises:
        Invalid: it is empty, or relative where it must not be, or holds a NUL character.
    """
    if not path or "\0" in path:
        raise Invalid(f"{what}: {path!r} is no path")
    if not path.startswith("/") and base is None:
        raise Invalid(f"{what}: {path!r} must be an absolute path")
    # Not by normpath alone: it keeps two slashes at the beginning, which mean the same as one here.
    return "/" + posixpath.normpath(posixpath.join(base or "/", path)).lstrip("/")


def checked_user(user: str) -> str:
    """*user*, if processes can be started as it.

    Raises:
        Invalid: it is neither `user` nor `root` nor two numbers.
    """
    ids = _USER.fullmatch(user)
    if user in ("user", "root") or (ids and max(int(ids[1]), int(ids[2])) <= _HIGHEST_ID):
        return user
    raise Invalid(f"user: must be user, root, or UID:GID up to {_HIGHEST_ID} (got {user[:100]!r})")


def _checked_limits(actor: Actor, asked: Limits, policy: LimitPolicy) -> Limits:
    limits = policy.resolve(LimitOverrides(), LimitOverrides(**asdict(asked)))
    for name, value, most in (
        ("wall_s", limits.wall_s, actor.max_duration_s),
        ("memory_bytes", limits.memory_bytes, actor.max_memory_bytes),
    ):
        if most is not None and value > most:
            raise InvalidLimit(name, value, f"your plan allows {most:g} at most", maximum=most)
    return limits


def _checked_network(network: Network) -> Network:
    """*network*, without ports that its mode does not show."""
    for text in network.allow_cidrs or ():
        try:
            ipaddress.ip_network(text)
        except ValueError as error:
            raise Invalid(f"network.allow_cidrs: {error}") from None
    for name in network.allow_domains or ():
        if not _DOMAIN.fullmatch(name.lower()) or len(name) > 253:
            raise Invalid(f"network.allow_domains: {name!r} is neither a name nor *. and a name")
    # What is bound is bound from outside: unlike a port that listens, it does not depend on what the sandbox may do.
    shown = tuple(port for port in network.ports if network.mode is NetworkMode.EXPOSED or port.container == Port.BOUND)
    for port in shown:
        if port.container == Port.BOUND:
            if port.protocol is not Protocol.TCP:
                raise Invalid("network.ports: a port that leads to the bound one is a TCP port")
        elif not 1 <= port.container <= 65535:
            raise Invalid(f"network.ports: {port.container} is no port; 1 to 65535 are")
        if not 0 <= port.host <= 65535:
            raise Invalid(f"network.ports: {port.host} is no port of a host; 1 to 65535 are, 0 stands for any")
    if len({(port.container, port.protocol) for port in shown}) != len(shown):
        raise Invalid("network.ports: a port is named twice")
    if (count := sum(port.container != Port.BOUND for port in shown)) > MOST_PORTS:
        raise Invalid(f"network.ports: {count} ports; {MOST_PORTS} is the most")
    return Network(mode=network.mode, ports=shown, allow_cidrs=network.allow_cidrs, allow_domains=network.allow_domains)
