"""The wire contract's cases about boxes and their disks, by their numbers, against a whole server."""

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from stockade.engine.ulids import new_ulid
from tests.app.serving import Server
from tests.dialects.boxlite.clients import VERSIONS, drive
from tests.dialects.boxlite.platform import KEY, Client, client_of, platform

pytestmark = pytest.mark.anyio


def refused(response: httpx.Response, status: int, code: str) -> None:
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    assert response.json()["error"]["code"] == status


async def test_cases_01_to_04_config_tokens_keys(real: Client) -> None:
    async with httpx.AsyncClient(base_url=real.base, trust_env=False) as nobody:
        config = (await nobody.get("/v1/config")).json()["capabilities"]
        assert all(config[f"{name}_enabled"] is True for name in ("snapshots", "clone", "export", "import"))
        form = {"grant_type": "client_credentials", "client_id": "id", "client_secret": KEY}
        token = (await nobody.post("/v1/oauth/tokens", data=form)).json()
        assert (token["token_type"], token["expires_in"] > 60) == ("bearer", True)
        refused(await nobody.post("/v1/oauth/tokens", data=form | {"client_secret": "no"}), 401, "unauthenticated")
        refused(await nobody.get("/v1/boxes", headers={"Authorization": "Bearer no"}), 401, "unauthenticated")
        headers = {"Authorization": f"Bearer {token['access_token']}"}
        assert (await nobody.get("/v1/boxes", headers=headers)).status_code == 200
        assert (await nobody.get("/v1/me", headers=headers)).json()["principal_type"] == "service_account"


async def test_cases_05_to_13_make_find_and_refuse(real: Client) -> None:
    refused(await real.http.get(real.box("none")), 404, "not_found")
    members = {
        "name": "all", "image": "python:slim", "cpus": 1, "memory_mib": 256, "disk_size_gb": 1, "working_dir": "/work",
        "env": {"A": "1"}, "network": {"mode": "enabled", "allow_net": ["a.example.com"]}, "entrypoint": ["env", "B=2"],
        "cmd": ["sleep", "infinity"], "user": "1000:1000", "auto_remove": False, "detach": True,
        "secrets": [{"name": "svc", "value": "real-value", "hosts": ["a.example.com"], "placeholder": "<P>"}],
    }  # fmt: skip
    response = await real.http.post("/v1/default/boxes", json=members)
    assert response.status_code == 201, response.text
    made = response.json()
    assert (made["name"], made["image"], made["cpus"], made["memory_mib"]) == ("all", "python:slim", 1, 256)
    assert "real-value" not in response.text
    refused(await real.http.post("/v1/default/boxes", json=members), 409, "already_exists")
    refused(await real.http.post("/v1/boxes", json={"image": "no.such.example/x:1"}), 422, "image_pull_failed")
    wrong = {"image": "host", "network": {"mode": "disabled", "allow_net": ["a"]}}
    refused(await real.http.post("/v1/boxes", json=wrong), 400, "invalid_argument")
    for path in (
        f"/v1/default/boxes/{made['box_id']}",
        "/v1/default/boxes/all",
        "/v1/boxes/all",
        "/v1/t1/t2/boxes/all",
    ):
        assert (await real.http.get(path)).json()["box_id"] == made["box_id"]
    assert (await real.http.head(real.box("all"))).status_code == 204
    missing = await real.http.head(real.box("none"))
    assert (missing.status_code, missing.content) == (404, b"")
    await real.drop("all")


async def test_cases_14_15_a_hundred_and_fifty_boxes(real: Client) -> None:
    places = asyncio.Semaphore(8)

    async def make() -> str:
        async with places:
            return await real.create()

    made = await asyncio.gather(*(make() for _ in range(150)))
    answer = (await real.http.get("/v1/default/boxes")).json()
    assert {one["box_id"] for one in answer["boxes"]} >= set(made)
    assert answer["next_page_token"] is None
    first = (await real.http.get("/v1/boxes", params={"pageSize": "2"})).json()
    query = {"pageSize": "1000", "pageToken": first["next_page_token"]}
    rest = (await real.http.get("/v1/boxes", params=query)).json()
    ids = [one["box_id"] for page in (first, rest) for one in page["boxes"]]
    assert len(set(ids)) == len(ids) == len(answer["boxes"])

    async def drop(box: str) -> None:
        async with places:
            await real.drop(box)

    await asyncio.gather(*map(drop, made))


async def test_cases_16_32_61_files_outlive_processes(real: Client) -> None:
    box = await real.create(auto_remove=False)
    for _ in range(2):
        assert (await real.post(box, "start"))["status"] == "running"
    assert await real.run(box, "echo kept > ~/file; sleep 1000 & echo $!") != ""
    assert (await real.post(box, "stop"))["status"] == "stopped"
    assert await real.run(box, "cat ~/file; pgrep -x sleep || echo none") == "kept\nnone\n"
    assert await real.status(box) == "running", "whoever uses it starts it"
    await real.drop(box)


async def test_case_51_52_metrics_are_counted_and_measured(real: Client) -> None:
    box = await real.create()
    await real.post(box, "start")
    before = (await real.http.get(real.box(box, "metrics"))).json()
    await real.run(box, "true")
    after = (await real.http.get(real.box(box, "metrics"))).json()
    assert after["commands_executed_total"] - before["commands_executed_total"] == 1
    assert after["memory_bytes"] > 0
    assert after["boot_timing"]["guest_boot_ms"] <= after["boot_timing"]["total_create_ms"]
    figures = (await real.http.get("/v1/default/metrics")).json()
    running = figures["boxes_created_total"] - figures["boxes_failed_total"] - figures["boxes_stopped_total"]
    listed = (await real.http.get("/v1/boxes", params={"status": "running,paused"})).json()["boxes"]
    assert running == figures["num_running_boxes"] == len(listed)
    await real.drop(box)


async def test_cases_53_to_55_snapshots(real: Client) -> None:
    box = await real.create()
    await real.run(box, "echo old > ~/file")
    name, path = "s 1/é", real.box(box, f"snapshots/{quote('s 1/é', safe='')}")
    made = await real.post(box, "snapshots", {"name": name}, status=201)
    assert isinstance(made["created_at"], int)
    assert (await real.http.get(path)).json() == made
    refused(await real.http.post(real.box(box, "snapshots"), json={"name": name}), 409, "already_exists")
    refused(await real.http.get(real.box(box, "snapshots/none")), 404, "not_found")
    refused(await real.http.delete(real.box(box, "snapshots/none")), 404, "not_found")
    await real.run(box, "echo new > ~/file")
    refused(await real.http.post(f"{path}/restore"), 409, "invalid_state")
    await real.post(box, "stop")
    assert (await real.http.post(f"{path}/restore")).status_code == 204
    assert await real.run(box, "cat ~/file") == "old\n"
    assert (await real.http.delete(path)).status_code == 204
    await real.drop(box)


async def test_case_56_clones_and_forks_are_boxes_of_their_own(real: Client) -> None:
    box = await real.create()
    await real.run(box, "echo first > ~/file")
    plain = (await real.post(box, "clone", {}, status=201))["box_id"]
    named = await real.post(box, "clone", {"name": "c"}, status=201)
    assert named["name"] == "c"
    assert await real.run("c", "cat ~/file; echo second > ~/file") == "first\n"
    assert await real.run(box, "cat ~/file") == "first\n"
    forks = (await real.post(box, "fork", {"count": 3}, status=201))["boxes"]
    assert [one["status"] for one in forks] == ["running"] * 3
    ids = [one["box_id"] for one in forks]
    assert await asyncio.gather(*(real.run(one, "cat ~/file") for one in ids)) == ["first\n"] * 3
    await real.drop(box, plain, "c", *ids)


async def test_cases_57_58_export_and_import(real: Client) -> None:
    box = await real.create(env={"A": "1"})
    await real.run(box, "echo moved > ~/file; chmod 640 ~/file")
    exported = await real.http.post(real.box(box, "export"), json={})
    assert exported.status_code == 200, exported.text
    headers = {"Content-Type": "application/octet-stream"}
    made = await real.http.post("/v1/boxes/import?name=i", content=exported.content, headers=headers)
    assert made.status_code == 201, made.text
    assert await real.run("i", "cat ~/file; stat -c %a ~/file; echo $A") == "moved\n640\n1\n"
    before = len((await real.http.get("/v1/boxes")).json()["boxes"])
    damaged = bytearray(exported.content)
    damaged[len(damaged) // 2] ^= 1
    for content in (b"garbage", bytes(damaged), exported.content[:-10]):
        refused(await real.http.post("/v1/boxes/import", content=content, headers=headers), 400, "invalid_argument")
    assert len((await real.http.get("/v1/boxes")).json()["boxes"]) == before
    await real.drop(box, "i")


async def test_case_59_removal(real: Client) -> None:
    box = await real.create()
    await real.post(box, "start")
    refused(await real.http.delete(real.box(box)), 409, "invalid_state")
    await real.drop(box)
    refused(await real.http.delete(real.box(box)), 404, "not_found")


@pytest.mark.parametrize("members", [{"auto_remove": True}, {"auto_delete": 1}])
async def test_case_60_removed_with_its_stop(real: Client, members: dict[str, Any]) -> None:
    box = await real.create(**members)
    await real.post(box, "start")
    assert (await real.post(box, "stop"))["box_id"] == box
    await real.gone(box)


async def test_a_box_is_stopped_when_nobody_uses_it_and_removed_later(real: Client) -> None:
    box = await real.create(auto_stop=1, auto_delete=2)
    await real.post(box, "start")
    await real.gone(box)


async def test_case_62_a_volume_outlives_its_boxes(real: Client) -> None:
    name = f"data-{new_ulid().lower()}"
    made = (await real.http.post("/v1/volumes", json={"name": name})).json()
    first = await real.create(volumes=[{"managed_volume": name, "guest_path": "/data"}])
    await real.run(first, "echo shared > /data/file")
    refused(await real.http.delete(f"/v1/volumes/{name}"), 409, "invalid_state")
    await real.drop(first)
    second = await real.create(volumes=[{"managed_volume": made["id"], "guest_path": "/data", "read_only": True}])
    assert await real.run(second, "cat /data/file; touch /data/x 2>&1 || true") != "shared\n"
    await real.drop(second)
    assert (await real.http.delete(f"/v1/volumes/{made['id']}")).status_code == 204
    refused(await real.http.delete(f"/v1/volumes/{made['id']}"), 404, "not_found")
    assert (await real.http.delete(f"/v1/volumes/{made['id']}?force=true")).status_code == 204


async def test_pause_keeps_processes_as_they_are(real: Client) -> None:
    box = await real.create()
    await real.run(box, "sleep 1000 > /dev/null 2>&1 &")
    assert (await real.post(box, "pause"))["status"] == "paused"
    assert (await real.post(box, "resume"))["status"] == "running"
    await real.post(box, "pause")
    assert (await real.run(box, "pgrep -x sleep")).strip().isdigit(), "whoever uses it resumes it"
    await real.drop(box)


async def test_a_tunnel_leads_into_the_box(real: Client) -> None:
    box = await real.create()
    await real.run(box, "cd /tmp && echo inside > index.html && python3 -m http.server 8000 >/dev/null 2>&1 &")
    uri = (await real.post(box, "network/tunnel?port=8000"))["uri"]
    host, _, port = uri.removeprefix("http://").partition(":")
    async with asyncio.timeout(60):
        while True:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"CONNECT x:1 HTTP/1.1\r\nhost: x:1\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " in head.partition(b"\r\n")[0]:
                break
            writer.close()  # nothing listens there yet
            await asyncio.sleep(0.1)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        assert (await reader.read()).endswith(b"inside\n")
        writer.close()
    async with httpx.AsyncClient(trust_env=False) as browser:
        assert (await browser.get(uri)).text == "inside\n", "without CONNECT as well"
    await real.drop(box)
    with pytest.raises(ConnectionError):
        await asyncio.open_connection(host, int(port))


@pytest.mark.parametrize("version", VERSIONS)
async def test_published_clients_work(real: Client, server: Server, tmp_path: Path, version: str) -> None:
    seen = await drive(version, "client_boxes.py", server.url, KEY, str(tmp_path), "whole")
    assert seen["info"] == [seen["id"], f"v{version}-dev", "host", 1, 128, "configured"]
    assert seen["snapshots"] == ["s 1/é"]
    assert (seen["clone"], seen["imported"]) == (f"v{version}-copy", f"v{version}-imported")
    assert (seen["nobody"], seen["clone_gone"]) == (None, None)
    assert seen["left"] == []
    assert seen.get("through", "hello") == "hello"


async def test_on_loopback_nobody_needs_a_key(real: Client) -> None:
    """Clients up to 0.9.3 without credentials send no header at all."""
    async with httpx.AsyncClient(base_url=real.base, timeout=60, trust_env=False) as http:
        nobody = Client(http=http, base=real.base)
        box = await nobody.create()
        assert await nobody.run(box, "echo hello") == "hello\n"
        refused(await real.http.get(real.box(box)), 404, "not_found")
        await nobody.drop(box)


async def test_a_box_is_found_again_after_a_restart(tmp_path: Path, anyio_backend: str) -> None:
    """Its name, its files and its snapshots are there; it runs on where the server was only stopped."""
    with platform(tmp_path) as server:
        async with client_of(server) as client:
            box = await client.create(name="dev")
            await client.run(box, "echo kept > ~/file")
            await client.post(box, "snapshots", {"name": "s"}, status=201)
            assert server.end() == 0
    with platform(tmp_path) as server:
        async with client_of(server) as client:
            assert await client.status("dev") == "running"
            assert await client.run("dev", "cat ~/file") == "kept\n"
            found = (await client.http.get(client.box("dev", "snapshots"))).json()["snapshots"]
            assert [one["name"] for one in found] == ["s"]
            await client.drop("dev")
