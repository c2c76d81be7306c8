"""Ways in over the wire: what a tenant has who holds a key and knows an address.

They use the protocols as their clients do and nothing of ours, so that what they find is true of the whole server:
routes, queue, engine, warden.
"""

from stockade.attacks.ways import Way
from stockade.attacks.wire_ways_boxes import BoxExec
from stockade.attacks.wire_ways_runs import Job, Run, TemplateRun
from stockade.attacks.wire_ways_server import WireServer
from stockade.attacks.wire_ways_sessions import Executor, SessionExec

__all__ = ["NAMES", "WireServer", "wire_ways"]

NAMES = (
    "run",
    "template",
    "job",
    "session",
    "session root",
    "session terminal",
    "executor",
    "box",
    "box root",
)
"""Every way, as the tables show them."""


def wire_ways(server: WireServer, *, ordinary: bool = False) -> tuple[Way, ...]:
    """Every way into *server*.

    Args:
        ordinary: its warden is not root's.
    """
    more = frozenset({"ordinary"}) if ordinary else frozenset[str]()
    return (
        Run(server=server, gives=more),
        TemplateRun(server=server, gives=more),
        Job(server=server, gives=more),
        SessionExec(server=server, name="session", gives=more | {"live"}),
        SessionExec(server=server, name="session root", user="root", gives=more | {"live", "root"}),
        SessionExec(
            server=server,
            name="session terminal",
            user="root",
            terminal=True,
            network="outgoing",
            gives=more | {"live", "root", "terminal", "outgoing"},
        ),
        Executor(server=server, gives=more | {"live", "file"}),
        BoxExec(server=server, name="box", user="user", gives=more | {"live", "disk"}),
        BoxExec(server=server, name="box root", user="root", gives=more | {"live", "disk", "root"}),
    )
