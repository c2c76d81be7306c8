"""Use cases, a noun a file. `Engine` is a frozen record of small services; it has no methods."""

from dataclasses import dataclass

from stockade.backends.base import Backend
from stockade.engine.bindings import Bindings
from stockade.engine.box_archives import BoxArchives
from stockade.engine.boxes import Boxes
from stockade.engine.compilations import Compilations
from stockade.engine.image_store import ImageStore
from stockade.engine.jobs import Jobs
from stockade.engine.languages import Language, Languages
from stockade.engine.limits import LimitPolicy
from stockade.engine.ports import Ports
from stockade.engine.processes import Processes
from stockade.engine.queue import Queue
from stockade.engine.registry_credentials import RegistryCredentials
from stockade.engine.runs import Runs
from stockade.engine.sandboxes import Sandboxes
from stockade.engine.secrets import Secrets
from stockade.engine.templates import Templates
from stockade.engine.toolchains import Toolchains
from stockade.engine.volumes import Volumes

__all__ = [
    "Bindings",
    "BoxArchives",
    "Boxes",
    "Compilations",
    "Engine",
    "ImageStore",
    "Jobs",
    "Language",
    "Languages",
    "LimitPolicy",
    "Ports",
    "Processes",
    "Queue",
    "RegistryCredentials",
    "Runs",
    "Sandboxes",
    "Secrets",
    "Templates",
    "Toolchains",
    "Volumes",
]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """All that a dialect can ask for."""

    languages: Languages
    runs: Runs
    queue: Queue
    limits: LimitPolicy
    compilations: Compilations
    toolchains: Toolchains
    backend: Backend
    sandboxes: Sandboxes | None = None
    """Those that live; `None` where the backend has none, or there is no database to record them in."""
    ports: Ports | None = None
    """What those expose."""
    processes: Processes | None = None
    """Those that are kept in them."""
    secrets: Secrets | None = None
    """Each opens one of them."""
    bindings: Bindings | None = None
    """Which port of each answers for the whole."""
    jobs: Jobs | None = None
    """Runs that are queued; `None` where there is no queue."""
    boxes: Boxes | None = None
    """Sandboxes that can be stopped and started again; `None`, as what follows, where the backend has no disks."""
    volumes: Volumes | None = None
    images: ImageStore | None = None
    """Those that were brought here from elsewhere."""
    registries: RegistryCredentials | None = None
    """What accounts log in with where images come from."""
    archives: BoxArchives | None = None
    """Boxes as files."""
