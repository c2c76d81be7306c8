"""An empty cell from the inside: a finished sandbox whose PID 1 waits to be told what it is to be."""

import os
import signal
import socket
from typing import Any, NoReturn

from . import init, kernel, protocol, steward

__all__ = ["await_message", "live"]


def live(birth: init.Birth) -> NoReturn:
    """Build the sandbox, say so, and become what the warden says: a run, or a sandbox that lives. Never returns."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            kernel.set_handler(number, kernel.DEFAULT_HANDLER)  # the warden's handlers are not ours
        upper = init.settle(birth)
        kernel.seal_process_title("init", birth.title)
        os.write(birth.control, init.READY)
        message, descriptors = await_message(birth)
        stay = message.get("stay")
        if stay is not None:
            steward.live(birth, steward.Stay(**stay, descriptors=descriptors, upper=upper))
        os.close(upper)
        init.run(birth, message, descriptors)
    except BaseException as error:  # whatever it is, the warden must hear of it
        init.complain(birth, f"{type(error).__name__}: {error}")
    os._exit(1)


def await_message(birth: init.Birth) -> tuple[dict[str, Any], list[int]]:
    """What the warden wants of us; when it wants nothing, the process ends."""
    with socket.socket(fileno=os.dup(birth.control)) as control:
        received = protocol.receive(control)
    if received is None:
        os._exit(0)  # not needed any more
    return received
