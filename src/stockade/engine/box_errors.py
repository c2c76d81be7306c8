"""What boxes refuse because of what they are, or where they are in their life."""

from stockade.errors import Conflict
from stockade.model import BoxState
from stockade.store.boxes import BoxExists, TooManyBoxes
from stockade.store.snapshots import SnapshotExists, TooManySnapshots
from stockade.store.volumes import TooManyVolumes, VolumeExists

__all__ = [
    "BoxExists",
    "BoxStateConflict",
    "BoxStopped",
    "SnapshotExists",
    "TooManyBoxes",
    "TooManySnapshots",
    "TooManyVolumes",
    "VolumeExists",
    "VolumeInUse",
]


class BoxStateConflict(Conflict):
    """The box is in a state that does not allow the operation."""

    code = "box.state"

    def __init__(self, box_id: str, *, state: BoxState, operation: str, remedy: str = "") -> None:
        self.box_id = box_id
        self.state = state
        self.operation = operation
        ending = f"; {remedy}" if remedy else ""
        super().__init__(f"cannot {operation} box {box_id}: it is {state.value}{ending}")


class BoxStopped(BoxStateConflict):
    """The box does not run, and may not be started by whoever uses it."""

    code = "box.stopped"


class VolumeInUse(Conflict):
    """A box has the volume in a way that does not go with what was asked for."""

    code = "volume.in_use"

    def __init__(self, volume: str, box_id: str, message: str) -> None:
        self.volume = volume
        self.box_id = box_id
        super().__init__(message)
