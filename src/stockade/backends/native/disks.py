"""Disks, by the warden: see `stockade.backends.disks`."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from stockade.backends.disks import DISK_SIZE, DiskFacts, DiskInfo
from stockade.backends.native.connection import Connection, close_all, error_of
from stockade.errors import BackendLost, CannotEnforce, NoAnswer

__all__ = ["NativeDisks"]

_WITHIN_S = 90.0
"""The first request has a file system made, or waits for a warden that has just ended to let go of it."""
_COPY_WITHIN_S = 900.0
"""Where nothing is shared, a copy reads and writes all there is."""


class NativeDisks:
    """Satisfies `stockade.backends.disks.Disks`."""

    def __init__(self, connected: Callable[[], Awaitable[Connection]], *, allow_unenforced: Sequence[str] = ()) -> None:
        """Speak to the warden over what *connected* gives."""
        self._connected = connected
        self._is_size_settled = DISK_SIZE in allow_unenforced

    async def facts(self) -> DiskFacts:
        facts = await self._ask({"op": "disk_facts"})
        return DiskFacts(
            kind=facts["kind"],
            shares_blocks=facts["shares_blocks"],
            enforces_size=facts["enforces_size"],
            free_bytes=facts["free_bytes"],
            place=facts["place"],
            why=facts["why"],
        )

    async def make(self, name: str, *, size_bytes: int) -> None:
        await self._settle_size()
        await self._ask({"op": "disk_make", "disk": name, "size_bytes": size_bytes})

    async def copy(self, of: str, name: str, *, size_bytes: int | None = None, sandbox: str | None = None) -> DiskInfo:
        await self._settle_size()
        message = {"op": "disk_copy", "of": of, "disk": name, "size_bytes": size_bytes, "sandbox": sandbox}
        return _info(await self._ask(message, within_s=_COPY_WITHIN_S))

    async def replace(self, name: str, by: str) -> None:
        await self._ask({"op": "disk_replace", "disk": name, "by": by}, within_s=_COPY_WITHIN_S)

    async def seal(self, name: str) -> DiskInfo:
        return _info(await self._ask({"op": "disk_seal", "disk": name}, within_s=_COPY_WITHIN_S))

    async def resize(self, name: str, *, size_bytes: int) -> None:
        await self._ask({"op": "disk_resize", "disk": name, "size_bytes": size_bytes})

    async def delete(self, name: str) -> None:
        await self._ask({"op": "disk_delete", "disk": name})

    async def info(self, name: str) -> DiskInfo:
        return _info(await self._ask({"op": "disk_info", "disk": name}, within_s=_COPY_WITHIN_S))

    async def list(self) -> list[DiskInfo]:
        found: list[DiskInfo] = []
        after: str | None = ""
        while after is not None:
            page = await self._ask({"op": "disk_list", "after": after}, within_s=_COPY_WITHIN_S)
            found.extend(_info(one) for one in page["disks"])
            after = page["after"]
        return found

    async def _settle_size(self) -> None:
        """Refuse to make a disk that nothing limits, unless the operator has agreed to that. Raises CannotEnforce."""
        if not self._is_size_settled:
            facts = await self.facts()
            if facts.kind != "none" and not facts.enforces_size:
                raise CannotEnforce([DISK_SIZE])
            self._is_size_settled = facts.enforces_size  # in what disks are kept once, they stay

    async def _ask(self, message: dict[str, Any], *, within_s: float = _WITHIN_S) -> dict[str, Any]:
        connection = await self._connected()
        try:
            answer, descriptors = await connection.ask(message, (), within_s)
        except BackendLost:
            if connection.lost is None:
                why = f"the disk did not answer within {within_s:g} s; what was asked for may still be done"
                raise NoAnswer(why) from None
            raise
        close_all(descriptors)
        if "error" in answer:
            raise error_of(answer["error"])
        found: dict[str, Any] = answer["ok"]
        return found


def _info(facts: dict[str, Any]) -> DiskInfo:
    return DiskInfo(
        name=facts["disk"],
        size_bytes=facts["size_bytes"],
        used_bytes=facts["used_bytes"],
        is_layer=facts["is_layer"],
    )
