"""What an operator can set about the boxlite dialect: `[dialects.boxlite]`."""

from dataclasses import dataclass

from stockade.config import setting

__all__ = ["BoxliteSettings"]

_MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class BoxliteSettings:
    """Settings of the boxlite dialect."""

    default_image: str = setting("alpine:latest", help="Image of a box that names none.")
    default_cpus: int = setting(2, at_least=1, help="`cpus` of a box that sets none; cut to `sandbox.maximum.cpus`.")
    default_memory_mib: int = setting(
        512, at_least=16, help="`memory_mib` of a box that sets none; cut to what its key's tier allows."
    )
    max_cpus: int = setting(
        32,
        at_least=1,
        at_most=255,
        help="The most that `cpus` may ask for. Above `sandbox.maximum.cpus` a box gets that many, as a virtual "
        "machine would.",
    )
    max_memory_mib: int = setting(
        16384, at_least=16, help="The most that `memory_mib` may ask for; `sandbox.maximum.memory_bytes` counts, too."
    )
    processes: int = setting(1024, at_least=1, help="Processes and threads of a box; cut to the maximum.")
    open_files: int = setting(4096, at_least=16, help="Open descriptors of a box's process; cut to the maximum.")
    auto_stop_s: float = setting(
        900.0,
        at_least=0,
        help="A box that says nothing of it is stopped when nobody has used it for so long; its disk stays, and "
        "whoever uses it next starts it. 0 for never.",
    )
    abandoned_s: float = setting(
        86400.0,
        at_least=0,
        help="The same for a box that is removed when it stops (`auto_remove`): what its client has left behind. 0 for "
        "never.",
    )
    most_executions: int = setting(
        64, at_least=1, help="Executions of a box that run at once; a further one is refused."
    )
    most_fork: int = setting(100, at_least=1, help="Copies that one `fork` makes.")
    max_body_bytes: int = setting(1 * _MIB, at_least=1024, help="Largest JSON body.")
    max_transfer_bytes: int = setting(
        16 * 1024 * _MIB, at_least=_MIB, help="Largest tar, or exported box, that is taken."
    )
    streams_per_key: int = setting(1000, at_least=1, help="Streams of output that one key may have open at once.")
    tunnel_host: str = setting(
        "", help="Address on which tunnels listen, and which their URLs name; empty takes the server's own."
    )
    tunnels_per_key: int = setting(100, at_least=1, help="Tunnels that one key may have at once.")
    tunnel_idle_s: float = setting(
        3600.0, at_least=1, help="A connection of a tunnel on which nothing has passed for so long is closed."
    )
