"""A server's API keys where a test needs no accounts."""

from dataclasses import dataclass

from stockade.model import Actor


@dataclass(frozen=True, kw_only=True)
class OneKey:
    """Knows one key, or none."""

    secret: str = ""

    async def verify(self, presented: str) -> Actor | None:
        return Actor(id="the server's") if presented and presented == self.secret else None
