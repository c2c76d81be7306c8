"""How many members a body has, looked at before anything is made of them.

Whoever checks a body by a model makes an error of each member that does not fit, some hundred times as large as the
member: two megabytes of them would keep the server busy for seconds.
"""

from collections.abc import Mapping

__all__ = ["is_crowded"]


def is_crowded(body: object, *, most: int) -> bool:
    """Whether *body*, as JSON has it, holds more than *most* members and elements, at whatever depth."""
    left = most
    waiting = [body]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping | list):
            left -= len(one)
            if left < 0:
                return True
            waiting.extend(one.values() if isinstance(one, Mapping) else one)
    return False
