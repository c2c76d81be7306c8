"""What a request for a box may say; from it comes the record of the box to be."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from stockade.engine.box_needs import BoxOptions
from stockade.engine.images import Image
from stockade.engine.limits import LimitPolicy
from stockade.engine.sandbox_requests import checked_command, checked_path, checked_user, new_sandbox
from stockade.engine.ulids import new_ulid
from stockade.errors import Invalid, InvalidLimit
from stockade.model import Actor, Box, BoxRequest, BoxState, Limits, Mount, Network, SandboxRequest, SecretRule, Volume

__all__ = ["checked_box_name", "checked_network", "checked_snapshot_name", "checked_user_of", "clone_of", "new_box"]

LEAST_MEMORY = 8 << 20
"""Bytes that a box needs: with less, what begins it does not fit."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_MOST_NAME = 255
_MOST_MOUNTS = 32
_MOST_SECRETS = 64
_MOST_TIME_S = 10 * 365 * 86400.0
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS = ("/proc", "/sys", "/dev")
"""Where nothing else can be mounted."""
_CAPABILITIES = frozenset(
    """
    AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER
    FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN NET_BIND_SERVICE
    NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE
    SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM ALL
    """.split()  # noqa: SIM905 (forty names are read more easily without their quotes)
)
"""See capabilities(7)."""


def new_box(
    actor: Actor,
    request: BoxRequest,
    image: Image,
    *,
    volumes: Mapping[str, Volume],
    policy: LimitPolicy,
    options: BoxOptions,
    now: datetime,
) -> Box:
    """The record of the box that *request* asks for: CONFIGURED, with everything filled in that it left open.

    Args:
        volumes: those that the mounts name, by what they name them.

    Raises:
        Invalid: something in it can never be.
        InvalidLimit: a limit is above the server's maximum or what the actor may have.
    """
    entrypoint, command = _main_of(request, image)
    disk_bytes = _checked_disk(request.limits.disk_bytes, options)
    if request.limits.memory_bytes < LEAST_MEMORY:
        least = f"a box needs at least {LEAST_MEMORY >> 20} MiB"
        raise InvalidLimit("memory_bytes", request.limits.memory_bytes, least)
    # As every start of it will be looked at; what can never run is not made.
    model = new_sandbox(
        actor,
        SandboxRequest(
            id="box",
            image=request.image,
            command=(),
            env=request.env,
            cwd=request.cwd,
            user=checked_user_of(request.user, image),
            limits=replace(request.limits, disk_bytes=min(disk_bytes, policy.maximum.disk_bytes)),
            network=request.network,
        ),
        image,
        limits=policy,
        now=now,
    )
    id = new_ulid(now=now.timestamp())
    return Box(
        id=id,
        name=None if request.name is None else checked_box_name(request.name),
        account_id=actor.account_id,
        key_id=actor.id,
        dialect=request.dialect,
        state=BoxState.CONFIGURED,
        image=request.image,
        image_digest=image.digest or image.name,
        entrypoint=entrypoint,
        command=command,
        env=model.env,
        cwd=model.cwd,
        user=model.user,
        terminal=request.terminal,
        limits=replace(model.limits, disk_bytes=disk_bytes),
        network=model.network,
        mounts=_checked_mounts(request.mounts, volumes),
        secrets=_checked_secrets(request.secrets, request.network),
        drop_capabilities=_checked_capabilities(request.drop_capabilities),
        labels=dict(request.labels),
        auto_stop_s=_checked_time("auto_stop_s", request.auto_stop_s, is_zero_good=False),
        auto_delete_s=_checked_time("auto_delete_s", request.auto_delete_s, is_zero_good=True),
        auto_resume=request.auto_resume,
        disk=f"b{id.lower()}",
        created_at=now,
        updated_at=now,
        last_used_at=now,
    )


def clone_of(box: Box, *, name: str | None, parent_snapshot_id: str | None, now: datetime) -> Box:
    """The record of a box that is as *box* is, and has never been started.

    Ports of the host are its own: where *box* has one that it asked for, the clone gets any.
    """
    id = new_ulid(now=now.timestamp())
    ports = tuple(replace(port, host=0) for port in box.network.ports)
    return replace(
        box,
        id=id,
        name=None if name is None else checked_box_name(name),
        state=BoxState.CONFIGURED,
        network=replace(box.network, ports=ports),
        disk=f"b{id.lower()}",
        created_at=now,
        updated_at=now,
        last_used_at=now,
        started_at=None,
        stopped_at=None,
        sandbox_id=None,
        starts=0,
        exit_code=None,
        message="",
        parent_snapshot_id=parent_snapshot_id,
    )


def checked_box_name(name: str, *, what: str = "name") -> str:
    """*name*, if a box, or a volume, can have it.

    Raises:
        Invalid: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"{what}: {name[:200]!r} must be 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-', and begin with a letter or "
            "a digit"
        )
    if _ULID.fullmatch(name):
        raise Invalid(f"{what}: {name!r} looks like an id; choose another")
    return name


def checked_snapshot_name(name: str) -> str:
    """*name*, if a snapshot can have it. Raises Invalid."""
    if not name or len(name) > _MOST_NAME or not name.isprintable():
        raise Invalid(f"name: {name[:200]!r} must be 1 to {_MOST_NAME} characters that can be printed")
    return name


def checked_user_of(user: str | None, image: Image) -> str:
    """*user* of a request as processes are started with it: see `BoxRequest.user`, `ExecSpec.user`.

    Raises:
        Invalid: the image has no such user, or a number is too high.
    """
    if user is None:
        return checked_user(image.user)
    name, colon, group = user.partition(":")
    if colon and not (group.isascii() and group.isdigit()):
        raise Invalid(f"user: the group of {user[:200]!r} must be a number")
    known = image.users.get(name)
    if known is None and name.isascii() and name.isdigit():
        uid = int(name)
        gid = next((one.gid for one in image.users.values() if one.uid == uid), 0)
    elif known is not None:
        uid, gid = known.uid, known.gid
    elif name in ("root", "user"):
        if not colon:
            return name
        uid, gid = (0, 0) if name == "root" else (1000, 1000)
    else:
        names = ", ".join(sorted({"root", "user", *image.users})[:50])
        raise Invalid(f"user: image {image.title} has no user {name[:200]!r}; it has {names}")
    gid = int(group) if colon else gid
    return "root" if (uid, gid) == (0, 0) else checked_user(f"{uid}:{gid}")


def checked_network(actor: Actor, box: Box, network: Network, image: Image, *, policy: LimitPolicy) -> Network:
    """*network*, if the box can have it. Raises Invalid."""
    limits = replace(box.limits, disk_bytes=min(box.limits.disk_bytes, policy.maximum.disk_bytes))
    asked = SandboxRequest(id="box", image=box.image, command=(), limits=limits, network=network)
    _checked_secrets(box.secrets, network)
    return new_sandbox(actor, asked, image, limits=policy, now=box.created_at).network


def sandbox_limits(box: Box, policy: LimitPolicy) -> Limits:
    """The limits of a sandbox on the box's disk, whose size the disk itself keeps to."""
    return replace(box.limits, disk_bytes=min(box.limits.disk_bytes, policy.maximum.disk_bytes))


def _main_of(request: BoxRequest, image: Image) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Entrypoint and command: what a request says of the one, it says of the other, too (as other engines have it)."""
    if request.entrypoint is not None:
        return checked_command(request.entrypoint), checked_command(request.command or ())
    entrypoint = tuple(image.entrypoint)
    if request.command is not None:
        return entrypoint, checked_command(request.command)
    if not image.layers and not request.terminal:
        return (), ()  # the host's shell would wait for somebody to type
    return entrypoint, image.command[len(entrypoint) :]


def _checked_disk(asked: int, options: BoxOptions) -> int:
    if isinstance(asked, bool) or not isinstance(asked, int) or asked <= 0:
        raise InvalidLimit("disk_bytes", asked, "must be a whole number greater than zero")
    if asked > options.most_disk_bytes:
        raise InvalidLimit(
            "disk_bytes", asked, f"must not be above {options.most_disk_bytes}", maximum=options.most_disk_bytes
        )
    return asked


def _checked_time(name: str, value: float | None, *, is_zero_good: bool) -> float | None:
    if value is None:
        return None
    if not math.isfinite(value) or value < 0 or (value == 0 and not is_zero_good) or value > _MOST_TIME_S:
        least = "0" if is_zero_good else "more than 0"
        raise Invalid(f"{name}: must be {least} to {_MOST_TIME_S:.0f} seconds (got {value!r})")
    return float(value)


def _checked_mounts(asked: tuple[Mount, ...], volumes: Mapping[str, Volume]) -> tuple[Mount, ...]:
    if len(asked) > _MOST_MOUNTS:
        raise Invalid(f"mounts: {len(asked)} volumes; {_MOST_MOUNTS} is the most")
    mounts: list[Mount] = []
    for one in asked:
        path = checked_path(one.path, what="mounts.path")
        if path == "/" or any(path == ours or path.startswith(f"{ours}/") for ours in _OURS):
            raise Invalid(f"mounts.path: nothing can be mounted at {path}")
        mounts.append(Mount(volume=volumes[one.volume].id, path=path, read_only=one.read_only))
    if len({one.path for one in mounts}) != len(mounts):
        raise Invalid("mounts: two volumes at one path")
    if len({one.volume for one in mounts}) != len(mounts):
        raise Invalid("mounts: a volume is named twice")
    return tuple(mounts)


def _checked_secrets(asked: tuple[SecretRule, ...], network: Network) -> tuple[SecretRule, ...]:
    """Which hosts a rule may name is the proxy's to say: it looks at them when the box is started."""
    if len(asked) > _MOST_SECRETS:
        raise Invalid(f"secrets: {len(asked)} of them; {_MOST_SECRETS} is the most")
    for one in asked:
        if not _VARIABLE.fullmatch(one.name) and not _NAME.fullmatch(one.name):
            raise Invalid(f"secrets.name: {one.name[:200]!r} cannot be the name of a variable")
        if not one.value or not one.placeholder or "\0" in one.value + one.placeholder:
            raise Invalid(f"secrets: the value and the placeholder of {one.name} must be text")
    for what in ("name", "placeholder"):
        if len({getattr(one, what) for one in asked}) != len(asked):
            raise Invalid(f"secrets: two with the same {what}")
    return tuple(replace(one, hosts=tuple(one.hosts)) for one in asked)


def _checked_capabilities(asked: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(one.upper().removeprefix("CAP_") for one in asked))
    if unknown := [one for one in names if one not in _CAPABILITIES]:
        raise Invalid(f"drop_capabilities: {unknown[0][:100]!r} is no capability; see capabilities(7)")
    return names
