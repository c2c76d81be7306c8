"""What clients may ask of disks: whom it is refused, and who stands still for how long."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from stockade.warden.disks import DiskOperations, Disks, Reply, Then
from stockade.warden.fields import Refused


class Kept:
    """Stands for the process: takes orders, and is told what comes of them."""

    def __init__(self) -> None:
        self.orders: list[dict[str, Any]] = []
        self.thens: list[Then] = []
        self.is_dead = False

    def ask(self, order: Mapping[str, Any], descriptors: Sequence[int], then: Then) -> None:
        if self.is_dead:
            raise Refused("unavailable", "dead")
        self.orders.append(dict(order))
        self.thens.append(then)

    def reply(self, reply: Reply) -> None:
        self.thens.pop(0)(reply, [])


class World:
    """One client, sandboxes that have disks, and what has happened."""

    def __init__(self) -> None:
        self.kept = Kept()
        self.writers: dict[str, list[str]] = {}
        self.users: dict[str, list[str]] = {}
        self.held: list[str] = []
        self.answers: list[Any] = []
        self.holding: Refused | None = None
        self.operations = DiskOperations(
            cast(Disks, self.kept),
            answer=lambda client, message, descriptors: self.answers.append(message["ok"]),
            refuse=lambda client, number, refused: self.answers.append(refused.kind),
            hold=self._hold,
            let_go=self.held.remove,
            uses_of=lambda disk: self.users.get(disk, []),
            writers_of=lambda disk: self.writers.get(disk, []),
        )

    def _hold(self, client: object, sandbox: str) -> None:
        if self.holding is not None:
            raise self.holding
        self.held.append(sandbox)

    def ask(self, op: str, **members: Any) -> None:
        assert self.operations.obey("client", {"op": op, "id": 1, **members}, [])

    def refusal(self, op: str, **members: Any) -> str:
        with pytest.raises(Refused) as refused:
            self.ask(op, **members)
        return refused.value.kind


@pytest.fixture
def world() -> World:
    return World()


def test_orders_are_passed_on_and_answered(world: World) -> None:
    for op, members, order in (
        ("disk_make", {"disk": "d", "size_bytes": 5}, {"op": "make", "disk": "d", "size_bytes": 5}),
        ("disk_copy", {"of": "d", "disk": "e"}, {"op": "copy", "of": "d", "disk": "e", "size_bytes": None}),
        ("disk_replace", {"disk": "d", "by": "e"}, {"op": "replace", "disk": "d", "by": "e"}),
        ("disk_seal", {"disk": "d"}, {"op": "seal", "disk": "d"}),
        ("disk_resize", {"disk": "d", "size_bytes": 7}, {"op": "resize", "disk": "d", "size_bytes": 7}),
        ("disk_delete", {"disk": "d"}, {"op": "delete", "disk": "d"}),
        ("disk_info", {"disk": "d"}, {"op": "info", "disk": "d"}),
        ("disk_list", {"after": "d"}, {"op": "list", "after": "d", "user": 0}),
        ("disk_facts", {}, {"op": "facts"}),
    ):
        world.ask(op, **members)
        assert world.kept.orders[-1] == order
        world.kept.reply({"about": op})
        assert world.answers[-1] == {"about": op}
    world.ask("disk_info", disk="d")
    world.kept.reply(Refused("not_found", "there is none"))
    assert world.answers[-1] == "not_found"
    assert not world.operations.obey("client", {"op": "run", "id": 1}, [])


def test_what_a_sandbox_has_is_not_taken_from_it(world: World) -> None:
    world.users["d"] = world.writers["d"] = ["s1"]
    assert world.refusal("disk_delete", disk="d") == "conflict"
    assert world.refusal("disk_replace", disk="d", by="e") == "conflict"
    assert world.refusal("disk_replace", disk="e", by="d") == "conflict"
    assert world.refusal("disk_seal", disk="d") == "conflict"
    assert world.refusal("disk_copy", of="d", disk="e") == "conflict"
    assert world.refusal("disk_copy", of="d", disk="e", sandbox="s2") == "conflict"
    world.writers["d"].append("s2")
    assert world.refusal("disk_copy", of="d", disk="e", sandbox="s1") == "conflict"
    assert world.kept.orders == []
    world.writers["d"] = []  # it reads alone
    world.ask("disk_copy", of="d", disk="e")
    world.ask("disk_resize", disk="d", size_bytes=9)


@pytest.mark.parametrize("reply", [{"disk": "e"}, Refused("unavailable", "no room")])
def test_a_sandbox_stands_still_while_its_disk_is_copied_and_no_longer(world: World, reply: Reply) -> None:
    world.writers["d"] = ["s1"]
    world.ask("disk_copy", of="d", disk="e", sandbox="s1")
    assert world.kept.orders == [{"op": "settle", "disk": "d"}]
    assert world.held == [], "what it has written gets to the disk while it runs"
    world.kept.reply({})
    assert world.kept.orders[-1] == {"op": "copy", "of": "d", "disk": "e", "size_bytes": None}
    assert world.held == ["s1"]
    world.kept.reply(reply)
    assert world.held == []
    assert world.answers == ["unavailable" if isinstance(reply, Refused) else reply]


def test_one_that_has_ended_meanwhile_is_not_held(world: World) -> None:
    world.writers["d"] = ["s1"]
    world.ask("disk_copy", of="d", disk="e", sandbox="s1")
    world.writers["d"] = []
    world.kept.reply({})
    assert world.held == []
    world.kept.reply({"disk": "e"})
    assert world.answers == [{"disk": "e"}]


def test_one_that_cannot_stand_still_is_copied_by_who_can_do_that_at_once(world: World) -> None:
    world.writers["d"] = ["s1"]
    world.holding = Refused("unsupported", "no freezer")
    world.ask("disk_copy", of="d", disk="e", sandbox="s1")
    world.kept.reply({})
    assert world.kept.orders[-1]["changing"] is True
    world.holding = Refused("not_found", "somebody else's")
    world.ask("disk_copy", of="d", disk="f", sandbox="s1")
    world.kept.thens.pop(0)
    world.kept.reply({})
    assert world.answers == ["not_found"]


def test_nobody_is_held_where_the_process_is_dead(world: World) -> None:
    world.writers["d"] = ["s1"]
    world.ask("disk_copy", of="d", disk="e", sandbox="s1")
    world.kept.is_dead = True
    world.kept.reply(Refused("unavailable", "it has died"))
    assert world.held == []
    assert world.answers == ["unavailable"]
    assert world.refusal("disk_info", disk="d") == "unavailable"


@pytest.mark.parametrize("members", [{"disk": "../d"}, {"disk": "d", "size_bytes": "1"}, {"disk": "d"}, {}])
def test_what_cannot_be_meant_is_refused(world: World, members: dict[str, Any]) -> None:
    assert world.refusal("disk_make", **members) == "invalid"
    assert world.kept.orders == []


def test_descriptors_are_refused(world: World) -> None:
    with pytest.raises(Refused, match="descriptors"):
        world.operations.obey("client", {"op": "disk_facts", "id": 1}, [0])
