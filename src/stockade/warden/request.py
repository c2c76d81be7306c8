"""What a client may ask for, checked member by member. The server is not trusted to be well-behaved."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .fields import Refused, command, directory, number, request_name, texts, variables, whole
from .protocol import MOST_DESCRIPTORS
from .recipe import Recipe
from .walls import wall_of

__all__ = ["RunRequest"]


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """One fresh sandbox with one process."""

    id: int
    image: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    wall_s: float
    cpu_s: float
    cpus: float
    memory_bytes: int
    processes: int
    disk_bytes: int
    disk_inodes: int
    open_files: int
    stack_bytes: int
    output_bytes: int
    drop_output: bool
    collect: bool
    bundles: int
    """How many of the descriptors are bundles; the next is standard input."""
    is_watched: bool = False
    """Two more descriptors, the last: memory files of the client's, for standard output and error. What is printed
    goes there, where the client sees it come."""
    recipe: Recipe | None = None
    """Of the warm process that may run it: its command, environment and directory are this request's own."""
    args: tuple[str, ...] = ()
    """With a recipe: what follows its command. Part of `argv` already."""
    wall: str = ""
    """Behind which further wall it is to run; empty for none (`walls`)."""
    name: str = "-"
    """By which the client knows it; for the log."""

    @classmethod
    def parse(cls, message: Mapping[str, Any], descriptors: int, recipe: Recipe | None = None) -> "RunRequest":
        """Take a message apart.

        Args:
            recipe: what its member `template` stands for: it then needs neither command nor environment.

        Raises:
            Refused: (`invalid`) naming the member that is wrong.
        """
        limits = message.get("limits")
        if not isinstance(limits, dict):
            raise Refused("invalid", "limits: must be an object")
        network = message.get("network", "none")
        if network != "none":
            raise Refused("unsupported", f"network {network!r} is not available; known: none")
        is_watched = message.get("watched") is True
        bundles = descriptors - 1 - 2 * is_watched
        if bundles < 0:
            raise Refused("invalid", "the descriptor of standard input, or one for output, is missing")
        collect = message.get("collect") is True
        if descriptors + collect > MOST_DESCRIPTORS:
            raise Refused("invalid", f"{bundles} bundles are too many")
        args: tuple[str, ...] = ()
        if recipe is not None:
            args = texts(message, "args")
            image, argv, env, cwd = recipe.image, recipe.argv + args, dict(recipe.env), recipe.cwd
        else:
            image, argv = str(message.get("image")), command(message, "argv")
            env, cwd = variables(message, "env"), directory(message, "cwd")
        return cls(
            id=whole(message, "id", 1 << 53, least=0),
            image=image,
            argv=argv,
            env=env,
            cwd=cwd,
            wall_s=number(limits, "wall_s", 366 * 86400.0),
            cpu_s=number(limits, "cpu_s", 366 * 86400.0 * 1024),
            cpus=number(limits, "cpus", 65536.0),
            memory_bytes=whole(limits, "memory_bytes", 1 << 50),
            processes=whole(limits, "processes", 1 << 22),
            disk_bytes=whole(limits, "disk_bytes", 1 << 50),
            disk_inodes=whole(limits, "disk_inodes", 1 << 31),
            open_files=whole(limits, "open_files", 1 << 20),
            stack_bytes=whole(limits, "stack_bytes", 1 << 40),
            output_bytes=whole(limits, "output_bytes", 1 << 40),
            drop_output=message.get("drop_output") is True,
            collect=collect,
            bundles=bundles,
            is_watched=is_watched,
            recipe=recipe,
            args=args,
            wall=wall_of(message),
            name=request_name(message),
        )

    @property
    def fits_recipe(self) -> bool:
        """Whether a warm process can do: what was settled when it began is what this request asks for."""
        recipe = self.recipe
        return (
            recipe is not None
            and not self.wall
            and not self.collect
            and self.disk_bytes == recipe.disk_bytes
            and self.disk_inodes == recipe.disk_inodes
            and self.stack_bytes == recipe.stack_bytes
            and self.memory_bytes >= recipe.memory_bytes
            and self.processes == recipe.processes
            and self.open_files == recipe.open_files
        )

    def errand(self) -> dict[str, Any]:
        """What the PID 1 of an empty cell is told: the members of `init.Errand` that are not descriptors."""
        return {
            "argv": self.argv,
            "env": self.env,
            "cwd": self.cwd,
            "disk_bytes": self.disk_bytes,
            "disk_inodes": self.disk_inodes,
            "processes": self.processes,
            "open_files": self.open_files,
            "stack_bytes": self.stack_bytes,
            "collect": self.collect,
        }

    def warm_errand(self) -> dict[str, Any]:
        """What a warm process is told."""
        return {"args": self.args}
