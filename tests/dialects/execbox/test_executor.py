"""Sessions that the executor API reaches: the secret, where it is used, and what the session object tells of both."""

from dataclasses import replace
from typing import Any

import pytest
from starlette.requests import Request

from stockade.config import Config
from stockade.dialects.execbox.executor import ExecutorApi
from stockade.engine.secrets import digest
from stockade.model import Network, NetworkMode, Port
from tests.dialects.execbox.conftest import Served, serving

pytestmark = pytest.mark.anyio

SECRET = "0123456789abcdef"
BOUND = Network(mode=NetworkMode.EXPOSED, ports=(Port(container=80, host=20000), Port(container=0, host=20001)))


async def create(served: Served, executor: Any, **members: Any) -> dict[str, Any]:
    response = await served.client.post("/v1/sessions", json={"image": "host", "executor": executor, **members})
    assert response.status_code == 201, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def read(served: Served, session: str) -> dict[str, Any]:
    answer: dict[str, Any] = (await served.client.get(f"/v1/sessions/{session}")).json()
    return answer


@pytest.mark.parametrize("asked", [True, {}, {"secret": None}, {"secret": SECRET, "more": 1}])
async def test_a_secret_is_shown_once_and_kept_as_a_digest(execbox: Served, asked: Any) -> None:
    made = await create(execbox, asked)
    secret = made["executor"]["secret"]
    assert secret == SECRET if asked not in (True, {}, {"secret": None}) else len(secret) >= 40
    url = f"http://127.0.0.1:{execbox.port}/koyeb-sandbox"
    assert made["executor"] == {"secret": secret, "url": url, "proxyPort": None}
    assert execbox.sandboxes.rows[made["id"]].secret_digest == digest(secret)
    shown = {"url": url, "proxyPort": None}
    assert (await read(execbox, made["id"]))["executor"] == shown
    (listed,) = (await execbox.client.get("/v1/sessions")).json()["sessions"]
    assert listed["executor"] == shown
    extended = await execbox.client.post(f"/v1/sessions/{made['id']}/extend", json={"timeoutMs": 60000})
    assert extended.json()["executor"] == shown


@pytest.mark.parametrize("asked", [False, None])
async def test_who_asks_for_none_sees_none(execbox: Served, asked: Any) -> None:
    made = await create(execbox, asked, network="exposed")
    assert set(made) == {"id", "status", "createdAt"}
    row = execbox.sandboxes.rows[made["id"]]
    assert (row.secret_digest, row.network.ports) == (None, ())
    assert "executor" not in await read(execbox, made["id"])


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"secret": "too short"}, "executor.secret: must be 16 to 256 printable ASCII characters"),
        ({"secret": "with space 0123456789"}, "executor.secret: must be"),
        ({"secret": "é" * 16}, "executor.secret: must be"),
        ({"secret": "x" * 257}, "executor.secret: must be"),
        ({"secret": ""}, "executor.secret: must be"),
        ({"secret": 5}, "executor.secret: input should be a valid string"),
        (5, "executor: must be true, false or an object"),
        ("true", "executor: must be true, false or an object"),
        ([], "executor: must be true, false or an object"),
    ],
)
async def test_what_is_no_secret_is_a_bad_request(execbox: Served, asked: Any, text: str) -> None:
    response = await execbox.client.post("/v1/sessions", json={"image": "host", "executor": asked})
    assert (response.status_code, response.json()["code"]) == (400, "BAD_REQUEST")
    assert response.json()["error"].startswith(text)
    assert not execbox.sandboxes.rows


async def test_an_exposed_one_has_a_port_for_the_bound_one_that_is_not_listed(execbox: Served) -> None:
    made = await create(execbox, True, network="exposed", ports=[{"container": 80}])
    asked = execbox.sandboxes.rows[made["id"]].network.ports
    assert [port.container for port in asked] == [80, Port.BOUND]
    execbox.sandboxes.change(made["id"], network=BOUND)
    found = await read(execbox, made["id"])
    assert found["executor"]["proxyPort"] == 20001
    assert list(found["network"]["ports"]) == ["80"]
    assert (await execbox.client.get(f"/v1/sessions/{made['id']}/url?port=0")).status_code == 400
    execbox.sandboxes.change(made["id"], network=replace(BOUND, ports=BOUND.ports[1:]))
    found = await read(execbox, made["id"])
    assert (found["executor"]["proxyPort"], "network" in found) == (20001, False)


async def test_the_operator_says_where_clients_reach_it() -> None:
    async with serving(executor_url="https://sand.example.org/") as execbox:
        made = await create(execbox, True)
        assert made["executor"]["url"] == "https://sand.example.org/koyeb-sandbox"


def api(*, is_merged: bool = True, **server: Any) -> ExecutorApi:
    return ExecutorApi(server=replace(Config().server, **server), is_merged=is_merged)


def request(host: str, *, port: int = 8080) -> Request:
    scope = {
        "type": "http", "scheme": "http", "path": "/v1/sessions", "query_string": b"",
        "server": ("127.0.0.1", port), "headers": [(b"host", host.encode())] if host else [],
    }  # fmt: skip
    return Request(scope)


@pytest.mark.parametrize(
    ("api", "request_", "url"),
    [
        (api(), request("localhost:8080"), "http://localhost:8080"),
        (api(), request("[::1]:8080"), "http://[::1]:8080"),
        (api(), request(""), "http://127.0.0.1:8080"),
        (api(), request("[bad"), "http://127.0.0.1:8080"),
        (api(port=0), request("localhost:40000", port=40000), "http://localhost:40000"),
        # where execbox is alone, the executor is not
        (api(listen={"execbox": "127.0.0.1:90"}), request("localhost:90", port=90), "http://127.0.0.1:8080"),
        (api(listen={"execbox": "127.0.0.1:90"}), request("localhost:8080"), "http://localhost:8080"),
        (
            api(listen={"execbox": "0.0.0.0:90"}, host="0.0.0.0"),
            request("sand.example.org:90", port=90),
            "http://sand.example.org:8080",
        ),
        (api(is_merged=False, listen={"executor": "127.0.0.1:3030"}), request("x:8080"), "http://127.0.0.1:3030"),
        (api(is_merged=False, listen={"executor": "[::]:3030"}), request("[::1]:8080"), "http://[::1]:3030"),
    ],
)
def test_its_url_is_the_one_that_the_client_can_reach(api: ExecutorApi, request_: Request, url: str) -> None:
    assert api.url_for(request_) == f"{url}/koyeb-sandbox"


def test_a_server_without_the_dialect_says_so() -> None:
    assert api().is_served
    assert api(is_merged=False, listen={"executor": "127.0.0.1:3030"}).is_served
    assert not api(is_merged=False).is_served


async def test_a_server_without_the_dialect_makes_no_secrets(execbox: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExecutorApi, "is_served", False)
    response = await execbox.client.post("/v1/sessions", json={"image": "host", "executor": True})
    assert (response.status_code, response.json()["code"]) == (501, "NOT_IMPLEMENTED")
