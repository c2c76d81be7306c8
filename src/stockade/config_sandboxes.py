"""Settings of sandboxes that live, of images, and of what is built on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from stockade.settings import setting

__all__ = ["BuildsConfig", "ImagesConfig", "LiveConfig", "NetworkConfig"]

_MIB = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class LiveConfig:
    """Sandboxes that stay: how long, and what is kept of them."""

    most_lifetime_s: float = setting(
        86400.0,
        at_least=1,
        help="The longest life of a sandbox that stays, extensions included. Tiers may allow less.",
    )
    retention_s: float = setting(
        600.0,
        at_least=0,
        help="After a sandbox has ended by itself: time for which its output can still be read. Its record stays.",
    )
    most_kept: int = setting(
        1000, at_least=1, help="Ended sandboxes whose output is kept at most; the oldest go first."
    )
    log_bytes: int = setting(
        _MIB,
        at_least=64 << 10,
        at_most=64 * _MIB,
        help="Bytes kept of each output stream of each process; the oldest are dropped where no reader keeps up.",
    )
    kept_bytes: int = setting(
        64 * _MIB,
        at_least=_MIB,
        help="Bytes of this machine's memory, beside the sandbox's own limit, that the output of all its processes may "
        "take while they run, and as much again once they have ended. Beyond it new ones keep less, and the oldest "
        "output is dropped.",
    )
    grace_s: float = setting(
        10.0, at_least=0, at_most=300, help="Time between SIGTERM and SIGKILL where a stop request names none."
    )
    clean_up_s: float = setting(
        30.0, at_least=1, help="Time between two clean-ups: output past its time, images that nobody uses, strays."
    )
    lost_after_s: float = setting(
        15.0, at_least=1, help="Time without an answer of the warden after which its sandboxes are reported as lost."
    )


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Where sandboxes with a way out may connect."""

    permit_private: tuple[str, ...] = setting(
        (),
        help='Networks that they may connect to although these are not public: `["10.1.0.0/16"]`. Everything in them '
        "must be fit for programs that nobody vouches for.",
    )
    refuse: tuple[str, ...] = setting(
        (), help="Networks that they may not connect to although these are public; whatever a request allows."
    )


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """What sandboxes are made from."""

    aliases: Mapping[str, str] = setting(
        factory=dict,
        help='Further names for images: `"python:3.12" = "host"`. A request that names what is neither an image nor an '
        "alias is refused.",
    )


@dataclass(frozen=True, kw_only=True)
class BuildsConfig:
    """Images that requests build: files and commands over another image. Each runs in a sandbox of its own."""

    network: Literal["outgoing", "none"] = setting(
        "outgoing", help="What a build may reach: the public internet (`outgoing`), or nothing (`none`)."
    )
    time_s: float = setting(600.0, at_least=1, help="Time that a build may take.")
    memory_bytes: int = setting(
        2 * _GIB, at_least=64 * _MIB, help="Memory of a build, what it writes included; no more than a sandbox's most."
    )
    disk_bytes: int = setting(_GIB, at_least=_MIB, help="Bytes that a build may write.")
    processes: int = setting(512, at_least=8, help="Processes and threads of a build.")
    at_once: int = setting(2, at_least=1, help="Builds that run at once; others wait.")
    layer_bytes: int = setting(_GIB, at_least=_MIB, help="Largest result of a build.")
    most_bytes: int = setting(
        20 * _GIB, at_least=0, help="Bytes of all results together; those used least recently are removed."
    )
    unused_s: float = setting(
        7 * 86400.0, at_least=60, help="A result that nobody has used for so long is removed; `7d` is a week."
    )
    shared: bool = setting(
        False,
        help="Let all accounts share results. By the time that an answer takes, one account can then tell whether "
        "another has built the very same.",
    )
