"""Which backend a sandbox comes from: what the operator offers, what the key says, what the request asks for."""

from dataclasses import dataclass

from stockade.errors import Denied, Invalid, Unsupported
from stockade.model import Actor

__all__ = ["BackendDenied", "BackendPolicy", "UnknownBackend"]


class UnknownBackend(Invalid):
    """The request names a backend that this server does not offer."""

    code = "backend.unknown"


class BackendDenied(Denied):
    """The key's sandboxes come from another backend."""

    code = "backend.denied"


@dataclass(frozen=True, kw_only=True)
class BackendPolicy:
    """What there is to choose from."""

    usual: str = "native"
    """Makes what names none."""
    offered: tuple[str, ...] = ("native",)
    """All, the usual one among them."""
    with_disks: str = "native"
    """Whose sandboxes boxes are."""

    def choose(self, actor: Actor, asked: str = "") -> str:
        """The name of the backend that a sandbox of *actor* is to come from; empty for the usual one.

        A key that has a backend has that one and no other: it is the operator's word on how much its programs are
        trusted.

        Args:
            asked: what the request names; empty for nothing.

        Raises:
            UnknownBackend: it is not offered here.
            BackendDenied: the key has another one.
        """
        if asked and asked not in self.offered:
            raise UnknownBackend(f"backend: {asked[:64]!r} is not offered here; offered: {', '.join(self.offered)}")
        if actor.backend and asked and asked != actor.backend:
            raise BackendDenied(f"backend: sandboxes of this key come from {actor.backend}, and from no other")
        name = actor.backend or asked
        return "" if name == self.usual else name

    def demand_disks(self, actor: Actor) -> None:
        """Refuse boxes to an actor whose sandboxes come from a backend that has no disks.

        Raises:
            Unsupported: see the message.
        """
        if actor.backend and actor.backend != self.with_disks:
            raise Unsupported(
                f"boxes come from {self.with_disks}, and sandboxes of this key from {actor.backend} alone"
            )
