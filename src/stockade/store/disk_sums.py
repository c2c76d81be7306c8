"""What the disks of an account may come to, all together: the sizes of its boxes and volumes, and what snapshots hold.

One who fills the place where all disks lie leaves none of it to others.
"""

from sqlalchemy import Connection, bindparam, func, select

from stockade.errors import LimitExceeded
from stockade.store.box_tables import boxes, snapshots, volumes
from stockade.store.database import Database

__all__ = ["TooMuchDisk", "check_room"]

_LOCK = 0x73697A65
_LIMITS = select(boxes.c.limits).where(boxes.c.owner == bindparam("of"))
_VOLUMES = select(func.coalesce(func.sum(volumes.c.size_bytes), 0)).where(volumes.c.owner == bindparam("of"))
_SNAPSHOTS = (
    select(func.coalesce(func.sum(snapshots.c.size_bytes), 0))
    .select_from(snapshots.join(boxes, boxes.c.id == snapshots.c.box_id))
    .where(boxes.c.owner == bindparam("of"))
)


class TooMuchDisk(LimitExceeded):
    """The disks of the account would come to more than it may have; remove some, or ask for smaller ones."""

    code = "disk.too_much"


def check_room(database: Database, connection: Connection, *, owner: str, new_bytes: int, most: int | None) -> None:
    """Refuse *new_bytes* more on the disks of *owner*, if that were more than *most*; nobody else adds any meanwhile.

    Args:
        most: `None` for any number: nothing is looked up.

    Raises:
        TooMuchDisk: it were.
    """
    if most is None:
        return
    database.lock(connection, _LOCK)
    of = {"of": owner}
    there = sum(int(limits["disk_bytes"]) for (limits,) in connection.execute(_LIMITS, of))
    there += sum(int(connection.execute(query, of).scalar_one()) for query in (_VOLUMES, _SNAPSHOTS))
    if there + new_bytes > most:
        raise TooMuchDisk(
            f"the disks of an account may come to {most} bytes, and those of this one come to {there}; remove some, or "
            "ask for smaller ones"
        )
