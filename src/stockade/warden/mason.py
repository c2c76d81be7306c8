"""The mason: the process that makes empty cells, so that the warden's loop never waits for one to be made.

A child of the warden's, forked before the first client comes: its memory, and with it that of every PID 1, never
held a tenant's data. It also begins templates, which then make cells by themselves.
"""

import gc
import os
import signal
import socket
from functools import partial
from typing import NoReturn

from . import gvisor, init, kernel, newborn, pool, protocol, template
from .cell import Cell, Host, IdRanges
from .maker import Maker, end
from .making import CELL, TEMPLATE, make
from .recipe import Recipe

__all__ = ["Mason"]


class Mason(Maker):
    """The warden's side."""

    def __init__(self, host: Host) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                ours.close()
                _work(host, theirs)
            finally:
                os._exit(1)
        theirs.close()
        host.children.add(self.pid)  # no template may say that this is a cell of its
        # Half of the host's high ids are for sandboxes by themselves, half for templates to give to theirs.
        super().__init__(host, ours, IdRanges.of_host(share=0, of=2) if host.own_ids else None)
        self._template_ids = IdRanges.of_host(share=1, of=2, size=template.IDS) if host.own_ids else None

    def order_template(self, purpose: object, recipe: Recipe) -> Cell:
        """Have a template begun; it is delivered like a cell, and heard over its control socket.

        Raises:
            Refused, OSError: as `order`.
        """
        return self.place(purpose, self._template_ids, {"template": recipe.to_message()})

    def close(self) -> None:
        """End the mason."""
        self.channel.close()
        self.abandon()
        end(self.pid)


def _work(host: Host, channel: socket.socket) -> NoReturn:
    kernel.set_parent_death_signal(signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the warden ends us when it has ended
    kernel.seal_process_title("stockade-mason", host.title)
    init.set_fixed_rlimits()
    gc.disable()
    while True:
        received = protocol.receive(channel)
        if received is None:
            os._exit(0)
        order, descriptors = received
        birth = init.Birth.of_kit(
            order["joins"],
            descriptors,
            stage=host.stage,
            image=host.stage.images["host"],
            seccomp=host.seccomp if order.get("wall") is None else host.seccomp_of_wall,
            own_ids=host.own_ids,
            processes_in_group=host.cgroups.pids is not None,
            title=host.title,
        )
        if (recipe := order.get("template")) is not None:
            live = partial(template.become, birth, Recipe.of_message(recipe), host.template_files)
            answer = make(TEMPLATE, live, order["ids"], ids=template.IDS)
        else:
            recipe = order.get("pool")
            live = partial(newborn.live, birth)
            if recipe is not None:
                live = partial(pool.live, birth, Recipe.of_message(recipe))
            elif (wall := order.get("wall")) is not None:
                live = partial(gvisor.live, birth, gvisor.Wall.of_message(wall))
            answer = make(CELL, live, order["ids"])
        if answer is None:
            os._exit(1)  # whatever happens, this process never comes back out
        protocol.send(channel, answer)
        for fd in descriptors:
            os.close(fd)
