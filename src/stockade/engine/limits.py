"""Which limits a run gets: server defaults, then the language's, then the request's, under the server's maximum."""

import math
from dataclasses import dataclass, fields

from stockade.errors import InvalidLimit
from stockade.model import LimitOverrides, Limits

__all__ = ["LimitPolicy"]


@dataclass(frozen=True, kw_only=True)
class LimitPolicy:
    """Merges the layers; refuses what is not a limit.

    A limit of zero, a negative one, NaN and infinity are errors, never "no limit": Piston's zero limits meant none.
    """

    defaults: Limits
    maximum: Limits

    def resolve(self, language: LimitOverrides, request: LimitOverrides, *, cap: bool = False) -> Limits:
        """The limits in force for one run.

        Args:
            language: what the language file asks for; cut to the maximum.
            request: what the caller asks for.
            cap: cut the caller's limits to the maximum instead of refusing them.

        Raises:
            InvalidLimit: a limit of the caller's is no positive finite number, or is above the maximum
                (`error.maximum` is set then).
        """
        values: dict[str, float] = {}
        asked = request.given()
        for name in (f.name for f in fields(Limits)):
            maximum = getattr(self.maximum, name)
            if name in asked:
                values[name] = self._checked(name, asked[name], maximum, cap=cap)
            else:
                own = getattr(language, name)
                values[name] = min(own if own is not None else getattr(self.defaults, name), maximum)
        return Limits(**values)  # type: ignore[arg-type]  # the fields' own types, by name

    @staticmethod
    def _checked(name: str, value: object, maximum: float, *, cap: bool) -> float:
        whole = not name.endswith("_s") and name != "cpus"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidLimit(name, value, "must be a number")
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidLimit(name, value, "must be a finite number")
        if value <= 0:
            raise InvalidLimit(name, value, "must be greater than zero")
        if whole and value != int(value):
            raise InvalidLimit(name, value, "must be a whole number")
        if value > maximum:
            if not cap:
                raise InvalidLimit(name, value, f"must not be above {maximum:g}", maximum=maximum)
            value = maximum
        return int(value) if whole else float(value)
