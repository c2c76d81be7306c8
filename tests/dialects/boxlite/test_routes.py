"""The dialect over HTTP, on boxes in memory: the numbers are those of the wire contract's cases."""

import asyncio
import io
import json
import tarfile
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest

from stockade.model import NetworkMode
from tests.dialects.boxlite.fakes import MAGIC
from tests.dialects.boxlite.routing import Served, serving

pytestmark = pytest.mark.anyio

B = "/v1/default/boxes"


@pytest.fixture(scope="module")
async def server(anyio_backend: str) -> AsyncIterator[Served]:
    async with serving() as one:
        yield one


@pytest.fixture
def served(server: Served) -> Served:
    """The one server, with nothing on it."""
    server.forget()
    return server


def refused(response: Any, status: int, kind: str, code: str) -> None:
    """The one body that clients of all generations understand."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body["error"]["type"] == kind
    assert body["error"]["code"] == status
    assert body["code"] == code
    assert body["error"]["message"] == body["message"] != ""


async def test_case_01_config_needs_no_key_and_announces_what_is_there(served: Served) -> None:
    response = await served.client.get("/v1/config", headers={"Authorization": ""})
    assert response.status_code == 200
    found = response.json()["capabilities"]
    for name in ("snapshots", "clone", "export", "import", "linux_capabilities"):
        assert found[f"{name}_enabled"] is True


async def test_cases_02_03_a_secret_that_is_a_key_is_exchanged_for_a_token(served: Served) -> None:
    form = {"grant_type": "client_credentials", "client_id": "a&b", "client_secret": "key-a"}
    response = await served.client.post("/v1/oauth/tokens", data=form, headers={"Authorization": ""})
    answer = response.json()
    assert response.status_code == 200
    assert (answer["token_type"], answer["scope"]) == ("bearer", "")
    assert isinstance(answer["expires_in"], int)
    assert answer["expires_in"] > 60
    assert response.headers["cache-control"] == "no-store"
    listed = await served.client.get(B, headers={"Authorization": f"Bearer {answer['access_token']}"})
    assert listed.status_code == 200
    for secret in ("wrong", ""):
        response = await served.client.post("/v1/oauth/tokens", data=form | {"client_secret": secret})
        refused(response, 401, "AuthError", "unauthenticated")
    refused(
        await served.client.post("/v1/oauth/tokens", content=b"\xff"), 400, "InvalidArgumentError", "invalid_argument"
    )


@pytest.mark.parametrize("header", ["", "Bearer wrong", "Basic a2V5LWE6", "Bearer", "key-a"])
async def test_case_04_no_key_no_answer(served: Served, header: str) -> None:
    for path in (B, "/v1/me", f"{B}/none", "/v1/volumes", "/v1/images"):
        response = await served.client.get(path, headers={"Authorization": header})
        refused(response, 401, "AuthError", "unauthenticated")
        assert response.headers["www-authenticate"] == "Bearer"


async def test_case_05_an_unknown_box_is_not_found(served: Served) -> None:
    refused(await served.client.get(f"{B}/none"), 404, "NotFoundError", "not_found")


async def test_another_accounts_box_is_not_found(served: Served) -> None:
    made = await served.create("key-b")
    refused(await served.client.get(f"{B}/{made['box_id']}"), 404, "NotFoundError", "not_found")


async def test_case_06_a_small_create(served: Served) -> None:
    body = {"network": {"mode": "enabled"}, "auto_remove": True, "detach": False}
    response = await served.client.post(B, json={"image": "host", **body})
    made = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == f"{B}/{made['box_id']}"
    assert len(made["box_id"]) == 26
    assert (made["status"], made["labels"], made["name"], made["pid"]) == ("configured", {}, None, None)
    assert made["created_at"].endswith("Z")
    assert "exit_code" not in made
    assert (made["auto_delete"], made["auto_stop"], made["auto_resume"]) == (1, 86400, True)


async def test_case_07_every_member_counts_and_no_secret_comes_back(served: Served) -> None:
    body = {
        "name": "dev", "image": "host", "cpus": 1, "memory_mib": 256, "disk_size_gb": 1, "working_dir": "/work",
        "env": {"DEBUG": "1"}, "network": {"mode": "enabled", "allow_net": ["api.example.com"]},
        "entrypoint": ["tini", "--"], "cmd": ["sleep", "infinity"], "user": "1000:1000",
        "secrets": [{"name": "svc", "value": "real-value", "hosts": ["api.example.com"], "placeholder": "<P>"}],
        "auto_remove": True, "detach": False, "auto_stop": 60, "auto_delete": 5, "auto_resume": False, "tty": True,
        "volumes": [{"managed_volume": "data", "guest_path": "/data", "read_only": True}],
        "advanced": {"capabilities": {"add": ["CAP_CHOWN"], "drop": ["NET_RAW"]}},
    }  # fmt: skip
    response = await served.client.post(B, json=body)
    made = response.json()
    assert response.status_code == 201, response.text
    assert (made["name"], made["image"], made["cpus"], made["memory_mib"]) == ("dev", "host", 1, 256)
    assert (made["auto_stop"], made["auto_delete"], made["auto_resume"]) == (60, 5, False)
    assert "real-value" not in response.text
    (request,) = served.boxes.requests
    assert request.secrets[0].value == "real-value"
    assert (request.limits.memory_bytes, request.limits.disk_bytes) == (256 << 20, 1 << 30)
    assert (request.entrypoint, request.command) == (("tini", "--"), ("sleep", "infinity"))
    assert (request.cwd, request.user, request.terminal) == ("/work", "1000:1000", True)
    assert request.network.allow_domains == ("api.example.com",)
    assert request.mounts[0].read_only
    assert request.drop_capabilities == ("NET_RAW",)


async def test_case_08_a_name_is_given_once(served: Served) -> None:
    await served.create(name="dev")
    response = await served.client.post(B, json={"image": "host", "name": "dev"})
    refused(response, 409, "AlreadyExistsError", "already_exists")


async def test_case_09_an_unknown_image_is_an_image_error(served: Served) -> None:
    refused(await served.client.post(B, json={"image": "nowhere:1"}), 422, "ImageError", "image_pull_failed")


@pytest.mark.parametrize(
    "body",
    [
        {"network": {"mode": "disabled", "allow_net": ["a"]}},  # case 10
        {"network": {"mode": "enabled", "inbound": {"mode": "enabled"}}},
        {"network": {"outbound": {"mode": "disabled", "allow_net": ["a"]}}},
        {"network": {"allow_net": ["a b"]}},
        {"network": {"allow_net": ["1.2.3.4/33"]}},
        {"network": {"allow_net": ["::1"]}},
        {"name": "import"},
        {"name": "a/b"},
        {"name": ""},
        {"cpus": 0},
        {"cpus": 1.5},
        {"cpus": 200},
        {"memory_mib": 1 << 30},
        {"disk_size_gb": 100_000},
        {"working_dir": "work"},
        {"rootfs_path": "/"},
        {"env": {"A=": "1"}},
        {"volumes": [{"managed_volume": "v", "guest_path": "data"}]},
        {"secrets": [{"name": "a"}]},
        [],
    ],
)
async def test_wrong_members_are_refused(served: Served, body: Any) -> None:
    response = await served.client.post(B, content=json.dumps(body))
    refused(response, 400, "InvalidArgumentError", "invalid_argument")
    assert not served.boxes.rows


async def test_capabilities_that_a_shared_kernel_cannot_give_are_unsupported(served: Served) -> None:
    body = {"image": "host", "advanced": {"capabilities": {"add": ["SYS_ADMIN"]}}}
    refused(await served.client.post(B, json=body), 400, "UnsupportedError", "unsupported")


async def test_a_keys_memory_bounds_its_boxes(served: Served) -> None:
    assert (await served.create("key-b"))["memory_mib"] == 256
    response = await served.client.post(
        B, json={"image": "host", "memory_mib": 512}, headers={"Authorization": "Bearer key-b"}
    )
    refused(response, 400, "InvalidArgumentError", "invalid_argument")


async def test_case_11_by_name_as_by_id(served: Served) -> None:
    made = await served.create(name="dev.1")
    by_name = (await served.client.get(f"{B}/dev.1")).json()
    assert by_name == (await served.client.get(f"{B}/{made['box_id']}")).json()


@pytest.mark.parametrize("slot", ["", "/default", "/t1", "/t1/t2", "/us/team-1/x"])
async def test_case_12_any_slot_will_do(served: Served, slot: str) -> None:
    made = await served.create()
    assert (await served.client.get(f"/v1{slot}/boxes/{made['box_id']}")).status_code == 200
    assert (await served.client.get(f"/v1{slot}/metrics")).status_code == 200
    assert (await served.client.get(f"/v1{slot}/images/usage")).status_code == 200


async def test_other_protocols_of_the_server_keep_their_paths(served: Served) -> None:
    """Nobody's id that reads like a resource leads here."""
    for path in ("/v1/jobs/boxes", "/v1/sessions/metrics", "/v1/execute/images", "/v2/boxes", "/api/v1/boxes"):
        assert "error" not in (await served.client.get(path)).json()


async def test_case_13_head_says_whether_there_is_one(served: Served) -> None:
    made = await served.create()
    found = await served.client.head(f"{B}/{made['box_id']}")
    missing = await served.client.head(f"{B}/none")
    assert (found.status_code, found.content, missing.status_code, missing.content) == (204, b"", 404, b"")


async def test_cases_14_15_all_boxes_at_once_or_pages_of_them(served: Served) -> None:
    made = {(await served.create())["box_id"] for _ in range(7)}
    answer = (await served.client.get(B)).json()
    assert {one["box_id"] for one in answer["boxes"]} == made
    assert answer["next_page_token"] is None
    seen, token = [], None
    while True:
        query = {"pageSize": "2"} | ({"pageToken": token} if token else {})
        page = (await served.client.get(B, params=query)).json()
        seen += [one["box_id"] for one in page["boxes"]]
        token = page["next_page_token"]
        if token is None:
            break
    assert len(seen) == 7
    assert set(seen) == made
    assert (await served.client.get(B, params={"status": "running"})).json()["boxes"] == []
    for query in ({"status": "odd"}, {"pageSize": "0"}, {"pageSize": "2", "pageToken": "odd"}):
        refused(await served.client.get(B, params=query), 400, "InvalidArgumentError", "invalid_argument")


async def test_case_16_start_twice_stop_twice(served: Served) -> None:
    box = f"{B}/{(await served.create())['box_id']}"
    for _ in range(2):
        response = await served.client.post(f"{box}/start")
        assert (response.status_code, response.json()["status"]) == (200, "running")
    for body in (None, {"timeout_seconds": 1}):
        response = await served.client.post(f"{box}/stop", json=body)
        assert (response.status_code, response.json()["status"]) == (200, "stopped")
    assert response.json()["exit_code"] == 137


async def test_pause_and_resume(served: Served) -> None:
    box = f"{B}/{(await served.create())['box_id']}"
    refused(await served.client.post(f"{box}/pause"), 409, "InvalidStateError", "invalid_state")
    await served.client.post(f"{box}/start")
    assert (await served.client.post(f"{box}/pause")).json()["status"] == "paused"
    assert (await served.client.post(f"{box}/resume")).json()["status"] == "running"


async def test_case_52_created_less_failed_and_stopped_is_what_runs(served: Served) -> None:
    made = [await served.create() for _ in range(3)]
    for one in made:
        await served.client.post(f"{B}/{one['box_id']}/start")
    await served.client.post(f"{B}/{made[0]['box_id']}/stop")
    await served.client.delete(f"{B}/{made[1]['box_id']}?force=true")
    found = (await served.client.get("/v1/default/metrics")).json()
    assert len(found) == 6
    assert all(isinstance(value, int) for value in found.values())
    running = found["boxes_created_total"] - found["boxes_failed_total"] - found["boxes_stopped_total"]
    assert running == found["num_running_boxes"] == 1


async def test_a_boxs_metrics_are_measured(served: Served) -> None:
    box = f"{B}/{(await served.create())['box_id']}"
    at_rest = (await served.client.get(f"{box}/metrics")).json()
    assert at_rest["memory_bytes"] is None
    await served.client.post(f"{box}/start")
    found = (await served.client.get(f"{box}/metrics")).json()
    assert (found["cpu_percent"], found["memory_bytes"]) == (50.0, 4096)
    assert (found["network_bytes_sent"], found["network_bytes_received"]) == (10, 20)
    assert found["boot_timing"]["total_create_ms"] == 12
    assert all(isinstance(value, int) for value in found["boot_timing"].values())


async def test_cases_53_54_snapshots_by_encoded_names(served: Served) -> None:
    box = f"{B}/{(await served.create())['box_id']}"
    name = "s 1/é"
    response = await served.client.post(f"{box}/snapshots", json={"name": name})
    assert response.status_code == 201
    assert isinstance(response.json()["created_at"], int)
    read = await served.client.get(f"{box}/snapshots/{quote(name, safe='')}")
    assert (read.status_code, read.json()["name"]) == (200, name)
    listed = (await served.client.get(f"{box}/snapshots")).json()["snapshots"]
    assert [one["name"] for one in listed] == [name]
    refused(
        await served.client.post(f"{box}/snapshots", json={"name": name}), 409, "AlreadyExistsError", "already_exists"
    )
    refused(await served.client.get(f"{box}/snapshots/none"), 404, "NotFoundError", "not_found")
    refused(await served.client.delete(f"{box}/snapshots/none"), 404, "NotFoundError", "not_found")
    assert (await served.client.delete(f"{box}/snapshots/{quote(name, safe='')}")).status_code == 204


async def test_case_55_restore_needs_a_stopped_box(served: Served) -> None:
    made = await served.create()
    box = f"{B}/{made['box_id']}"
    served.boxes.disks[made["box_id"]] = "old"
    await served.client.post(f"{box}/snapshots", json={"name": "s"})
    served.boxes.disks[made["box_id"]] = "new"
    await served.client.post(f"{box}/start")
    refused(await served.client.post(f"{box}/snapshots/s/restore"), 409, "InvalidStateError", "invalid_state")
    await served.client.post(f"{box}/stop")
    response = await served.client.post(f"{box}/snapshots/s/restore")
    assert (response.status_code, response.content) == (204, b"")
    assert served.boxes.disks[made["box_id"]] == "old"


async def test_case_56_clones_and_forks(served: Served) -> None:
    made = await served.create(name="a")
    box = f"{B}/{made['box_id']}"
    first = (await served.client.post(f"{box}/clone", json={})).json()
    second = (await served.client.post(f"{box}/clone", json={"name": "c"})).json()
    assert (first["name"], second["name"]) == (None, "c")
    forked = await served.client.post(f"{box}/fork", json={"count": 3})
    copies = forked.json()["boxes"]
    assert forked.status_code == 201
    assert [one["status"] for one in copies] == ["running"] * 3
    assert len({one["box_id"] for one in (made, first, second, *copies)}) == 6
    refused(await served.client.post(f"{box}/clone", json={"name": "c"}), 409, "AlreadyExistsError", "already_exists")
    refused(
        await served.client.post(f"{box}/fork", json={"count": 1000}), 400, "InvalidArgumentError", "invalid_argument"
    )


async def test_cases_57_58_export_and_import(served: Served) -> None:
    made = await served.create()
    served.boxes.disks[made["box_id"]] = "a file"
    exported = await served.client.post(f"{B}/{made['box_id']}/export", json={})
    assert (exported.status_code, exported.content) == (200, MAGIC + b"a file")
    assert exported.headers["content-type"] == "application/octet-stream"
    headers = {"Content-Type": "application/octet-stream"}
    response = await served.client.post(f"{B}/import?name=i", content=exported.content, headers=headers)
    assert (response.status_code, response.json()["name"]) == (201, "i")
    assert served.boxes.disks[response.json()["box_id"]] == "a file"
    refused(
        await served.client.post(f"{B}/import", content=b"garbage", headers=headers),
        400,
        "InvalidArgumentError",
        "invalid_argument",
    )
    assert len(served.boxes.rows) == 2


async def test_case_59_a_running_box_is_removed_by_force(served: Served) -> None:
    box = f"{B}/{(await served.create())['box_id']}"
    await served.client.post(f"{box}/start")
    refused(await served.client.delete(box), 409, "InvalidStateError", "invalid_state")
    assert (await served.client.delete(f"{box}?force=true")).status_code == 204
    refused(await served.client.delete(box), 404, "NotFoundError", "not_found")


@pytest.mark.parametrize("members", [{"auto_remove": True}, {"auto_delete": 1}])
async def test_case_60_removed_with_its_stop(served: Served, members: dict[str, Any]) -> None:
    box = f"{B}/{(await served.create(**members))['box_id']}"
    await served.client.post(f"{box}/start")
    stopped = await served.client.post(f"{box}/stop")
    assert (stopped.status_code, stopped.json()["status"]) == (200, "stopped")
    assert (await served.client.get(box)).status_code == 404


async def test_case_62_volumes(served: Served) -> None:
    made = (await served.client.post("/v1/volumes", json={"name": "data"})).json()
    assert (made["name"], made["state"]) == ("data", "ready")
    unnamed = await served.client.post("/v1/volumes", json={})
    assert unnamed.status_code == 201
    assert len((await served.client.get("/v1/volumes")).json()["volumes"]) == 2
    assert (await served.client.get("/v1/volumes/data")).json() == made
    await served.create(volumes=[{"managed_volume": "data", "guest_path": "/data"}])
    refused(await served.client.delete("/v1/volumes/data"), 409, "InvalidStateError", "invalid_state")
    assert (await served.client.delete(f"/v1/volumes/{unnamed.json()['id']}")).status_code == 204
    refused(await served.client.delete("/v1/volumes/none"), 404, "NotFoundError", "not_found")
    assert (await served.client.delete("/v1/volumes/none?force=true")).status_code == 204
    refused(
        await served.client.post("/v1/volumes", json={"name": "a/b"}), 400, "InvalidArgumentError", "invalid_argument"
    )


async def test_images_are_listed_read_named_and_removed(served: Served) -> None:
    (listed,) = (await served.client.get("/v1/images")).json()["images"]
    assert (listed["repository"], listed["tag"]) == ("docker.io/library/alpine", "3.20")
    name = quote(listed["reference"], safe="")
    found = (await served.client.get(f"/v1/images/{name}")).json()
    assert (found["curated"], found["tags"], found["config"]["cmd"]) == (True, ["3.20"], ["/bin/sh"])
    named = await served.client.post(f"/v1/images/{name}/aliases", json={"alias": "base"})
    assert named.json()["aliases"] == ["docker.io/library/base:latest"]
    assert (await served.client.delete(f"/v1/images/{name}/aliases/base")).status_code == 204
    usage = (await served.client.get("/v1/images/usage")).json()
    assert usage == {"count": 1, "limit": 100, "known_bytes": 4096}
    assert (await served.client.post("/v1/images/prune", json={})).json()["freed_bytes"] == 4096
    assert (await served.client.delete(f"/v1/images/{name}")).status_code == 204
    refused(await served.client.get(f"/v1/images/{name}"), 404, "NotFoundError", "not_found")


async def test_an_image_is_pulled_with_or_without_its_progress(served: Served) -> None:
    plain = await served.client.post("/v1/images/pull", json={"reference": "alpine:3.20"})
    assert plain.json()["layer_count"] == 1
    refused(
        await served.client.post("/v1/images/pull", json={"reference": "nowhere"}),
        422,
        "ImageError",
        "image_pull_failed",
    )
    headers = {"Accept": "text/event-stream"}
    told = await served.client.post("/v1/images/pull", json={"reference": "alpine:3.20"}, headers=headers)
    events = [one.split("\ndata: ") for one in told.text.strip().split("\n\n")]
    assert events[0][0] == "event: layer"
    assert json.loads(events[0][1])["size_bytes"] == 100
    assert events[-1][0] == "event: image"
    assert json.loads(events[-1][1]) == plain.json()
    failed = await served.client.post("/v1/images/pull", json={"reference": "nowhere"}, headers=headers)
    assert failed.text.startswith("event: error\n")


async def test_only_the_operator_brings_images_in_files(served: Served) -> None:
    layer = b"\0" * 1024
    files = {
        "manifest.json": b'[{"Config": "c.json", "RepoTags": ["a:1"], "Layers": []}]',
        "c.json": b'{"rootfs":{"diff_ids":[]}}',
    }
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    options: dict[str, Any] = {"content": archive.getvalue() + layer, "params": {"reference": "a:1"}}
    response = await served.client.post("/v1/images/import", **options)
    assert response.status_code == 200, response.text
    assert served.images.added == [files["c.json"]]
    response = await served.client.post("/v1/images/import", headers={"Authorization": "Bearer key-b"}, **options)
    refused(response, 403, "AuthError", "permission_denied")


async def test_credentials_of_registries_never_show_a_password(served: Served) -> None:
    body = {"registry_host": "r.example.com", "username": "u", "password": "hush-hush", "repository_prefix": "team"}
    made = await served.client.post("/v1/images/registries", json=body)
    assert made.status_code == 201
    listed = await served.client.get("/v1/images/registries")
    assert listed.json()["registries"] == [made.json()]
    assert "hush-hush" not in made.text + listed.text
    assert (await served.client.delete(f"/v1/images/registries/{made.json()['id']}")).status_code == 204
    refused(await served.client.delete("/v1/images/registries/none"), 404, "NotFoundError", "not_found")


async def tunnelled(served: Served, uri: str, first: bytes) -> bytes:
    """What comes back through a tunnel, up to where it closes or has said something."""
    host, _, port = uri.removeprefix("http://").partition(":")
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(first)
        await writer.drain()
        got = await reader.read(65536)
        if got.startswith(b"HTTP/1.1 200"):
            writer.write(b"hello")
            got += await reader.readexactly(5)
        writer.close()
        await writer.wait_closed()
    return got


async def test_a_tunnel_leads_to_a_port_until_it_is_revoked(served: Served) -> None:
    box = f"{B}/{(await served.create())['box_id']}"
    opened = await served.client.post(f"{box}/network/tunnel?port=8000")
    assert opened.status_code == 200, opened.text
    uri = opened.json()["uri"]
    assert (await served.client.post(f"{box}/network/tunnel?port=8000")).json()["uri"] == uri
    connect = b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nhost: 127.0.0.1:1\r\n\r\n"
    assert await tunnelled(served, uri, connect) == b"HTTP/1.1 200 Connection established\r\n\r\nhello"
    assert await tunnelled(served, uri, b"GET / HTTP/1.1\r\n\r\n") == b"GET / HTTP/1.1\r\n\r\n"
    assert (await served.client.delete(f"{box}/network/tunnel?port=8000")).status_code == 204
    with pytest.raises(ConnectionError):
        await tunnelled(served, uri, connect)
    refused(await served.client.post(f"{box}/network/tunnel?port=0"), 400, "InvalidArgumentError", "invalid_argument")


async def test_tunnels_end_with_their_box(served: Served) -> None:
    box = f"{B}/{(await served.create())['box_id']}"
    uri = (await served.client.post(f"{box}/network/tunnel?port=8000")).json()["uri"]
    await served.client.post(f"{box}/stop")
    with pytest.raises(ConnectionError):
        await tunnelled(served, uri, b"x")


async def test_a_box_that_is_not_to_be_reached_has_no_tunnels(served: Served) -> None:
    made = await served.create()
    box = f"{B}/{made['box_id']}"
    assert made["network"]["inbound"] == {"mode": "enabled"}
    uri = (await served.client.post(f"{box}/network/tunnel?port=8000")).json()["uri"]
    assert (await served.client.put(f"{box}/network/inbound", json={"mode": "disabled"})).status_code == 204
    with pytest.raises(ConnectionError):
        await tunnelled(served, uri, b"x")
    refused(await served.client.post(f"{box}/network/tunnel?port=8000"), 409, "InvalidStateError", "invalid_state")


async def test_outbound_is_replaced_whole(served: Served) -> None:
    made = await served.create(network={"mode": "enabled", "allow_net": ["a.com"]})
    box = f"{B}/{made['box_id']}"
    body = {"mode": "enabled", "allow_net": ["*.b.com", "93.184.216.34"]}
    assert (await served.client.put(f"{box}/network/outbound", json=body)).status_code == 204
    found = (await served.client.get(box)).json()["network"]["outbound"]
    assert found == {"mode": "enabled", "allow_net": ["93.184.216.34/32", "*.b.com"]}
    assert (await served.client.put(f"{box}/network/outbound", json={"mode": "disabled"})).status_code == 204
    network = served.boxes.rows[made["box_id"]].network
    assert (network.mode, network.allow_cidrs, network.allow_domains) == (NetworkMode.EXPOSED, (), ())


async def test_who_asks_too_fast_waits(served: Served) -> None:
    """The protocol's clients never ask twice: a refusal would be the end of what they do."""
    answers = await asyncio.gather(
        *(served.client.get(B, headers={"Authorization": "Bearer key-slow"}) for _ in range(8))
    )
    assert {one.status_code for one in answers} == {200}


async def test_an_open_server_answers_who_has_no_key_and_refuses_a_bad_one(anyio_backend: str) -> None:
    async with serving(open_access=True) as served:
        assert (await served.client.get(B)).status_code == 200
        response = await served.client.get(B, headers={"Authorization": "Bearer wrong"})
        refused(response, 401, "AuthError", "unauthenticated")


async def test_what_the_protocol_does_not_have_is_refused_in_its_words(served: Served) -> None:
    for method, path in (("GET", "/v1/boxes/a/b/c/d"), ("PATCH", "/v1/default/boxes"), ("POST", "/v1/volumes/x/y")):
        refused(await served.client.request(method, path), 404, "NotFoundError", "not_found")
