"""How many cells are kept ready: as demand has it, and none where the last one failed."""

import time
from typing import Any

import pytest

from stockade.warden import pools
from stockade.warden.pools import Pool
from stockade.warden.recipe import Recipe
from tests.warden.raw import Client, Warden, request, until
from tests.warden.test_recipe import message


def pool(*, announced: bool = False) -> Pool:
    return Pool(Recipe.parse(message()), announced=announced)


def test_demand_is_forgotten() -> None:
    now = time.monotonic()
    asked = pool()
    for _ in range(10):
        asked.ask(now)
    assert asked.demand(now) == pytest.approx(10)
    assert 3 < asked.demand(now + 5) < 4
    assert asked.demand(now + 60) < 0.001


def test_more_are_kept_where_more_are_asked_for_and_never_more_than_allowed() -> None:
    now = time.monotonic()
    asked = pool(announced=True)
    asked.making_s = 0.1
    quiet = asked.spares(now, 4, 16)
    for _ in range(200):
        asked.ask(now)
    assert (quiet, asked.spares(now, 4, 16), asked.spares(now, 4, 8)) == (4, 12, 8)
    assert asked.spares(now + 60, 4, 16) == 4


def test_what_nobody_asks_for_is_let_go() -> None:
    """A template that was announced keeps one cell ready, so that the next run does not wait."""
    now = time.monotonic()
    assert pool().spares(now + 1000, 4, 16) == 0
    assert pool(announced=True).spares(now + 1000, 4, 16) == 1


def test_a_failure_is_followed_by_a_pause_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    failing = pool(announced=True)
    pauses = []
    for _ in range(6):
        failing.failed("no")
        pauses.append(failing.not_before - now)
        assert failing.spares(now, 4, 16) == 0
    assert pauses == pytest.approx([*pools._AGAIN_S, pools._AGAIN_S[-1], pools._AGAIN_S[-1]])
    assert failing.spares(failing.not_before, 4, 16) > 0
    failing.succeeded(now - 1)
    assert (failing.failures, failing.complaint) == (0, "")


def learn(client: Client, **changes: Any) -> int:
    client.send({**message(), **changes})
    answer, _ = client.receive()
    number = answer["ok"]["template"]
    assert isinstance(number, int)
    return number


def warm(client: Client) -> list[dict[str, Any]]:
    found = client.hello()["ok"]["warm"]
    assert isinstance(found, list)
    return found


def test_a_template_is_begun_for_what_is_asked_for_often(warden: Warden, client: Client) -> None:
    """And its cells are let go when a burst is over; what was asked for once gets none."""
    once, often = learn(client, cwd="/once"), learn(client, cwd="/often")
    assert learn(client, cwd="/often") == often
    run = {**request(1), "args": []}
    client.run({**run, "template": once})
    for _ in range(6):
        client.run({**run, "template": often})
    # The program is missing: python says so, from a template or not.
    contents = client.run({**run, "template": often})[1]
    assert b"can't open file" in contents[0]
    until(lambda: [pool["ready"] > 0 for pool in warm(client)] == [False, True])
    for number in range(40):
        client.start({**run, "id": number, "template": often})
    for _ in range(40):
        client.answer()
    until(lambda: warm(client)[1]["ready"] <= 6 and warm(client)[1]["under_way"] == 0)


def test_templates_are_each_clients_own_to_name(warden: Warden, client: Client) -> None:
    learn(client)
    with warden.client() as other:
        for number in (0, 1, -1, 1 << 40, True, "0", [], 0.0):
            answer, _ = other.run(request(1, template=number))
            assert answer["error"]["kind"] == "invalid", number
    assert client.is_alive()


def test_a_client_may_not_name_templates_without_end(warden: Warden) -> None:
    with warden.client() as client:
        for number in range(1024):
            learn(client, cwd=f"/{number}")
        client.send(message(cwd="/one/more"))
        assert client.receive()[0]["error"]["kind"] == "unavailable"
        assert client.is_alive()
