"""Drives the published `boxlite` package, whichever version is installed here, and prints what it saw as JSON.

Run by `test_clients.py` in an environment of that package's own: URL, API key, a folder to write to, and, where
boxes have processes, one more word.
"""

import asyncio
import json
import os
import sys
import traceback

import boxlite

IS_NEW = hasattr(boxlite, "ApiKeyCredential")
OURS = f"v{boxlite.__version__}-"
"""Names of ours begin so: others may use the server, too."""
ECHO = """
import socket
with socket.create_server(("127.0.0.1", 8000)) as server:
    while True:
        with server.accept()[0] as one:
            one.sendall(one.recv(64))
"""
seen = {}


def runtime(url, key):
    if IS_NEW:
        return boxlite.Boxlite.rest(boxlite.BoxliteRestOptions(url=url, credential=boxlite.ApiKeyCredential(key)))
    return boxlite.Boxlite.rest(boxlite.BoxliteRestOptions(url=url, client_id="tests", client_secret=key))


async def maybe(value):
    """What is local in one version is asked for in another."""
    return await value if hasattr(value, "__await__") else value


async def error_of(work):
    try:
        await work
    except Exception as error:  # their own class is what is looked at
        return [type(error).__name__, str(error)]
    return None


async def ours(client):
    return sorted(one.name for one in await client.list_info() if (one.name or "").startswith(OURS))


def keeping(**more):
    """Options of a box that stays when it stops."""
    return boxlite.BoxOptions(image="host", **({"auto_delete": 0} if IS_NEW else {"auto_remove": False}), **more)


async def boxes(client):
    box = await client.create(keeping(cpus=1, memory_mib=128, env=[("A", "1")]), name=OURS + "dev")
    seen["id"] = box.id
    info = await maybe(box.info())
    seen["info"] = [info.id, info.name, str(info.image), info.cpus, info.memory_mib, str(info.state.status)]
    seen["duplicate"] = await error_of(client.create(keeping(), name=OURS + "dev"))
    seen["unknown_image"] = await error_of(client.create(boxlite.BoxOptions(image="nowhere:1")))
    await box.start()
    seen["running"] = (await client.get_info(OURS + "dev")).state.running
    seen["by_name"] = (await client.get(OURS + "dev")).id
    seen["nobody"] = await client.get("nobody")
    seen["again"] = (await client.get_or_create(keeping(), name=OURS + "dev"))[1]
    seen["listed"] = await ours(client)
    seen["remove_running"] = await error_of(client.remove(OURS + "dev"))
    metrics = await maybe(client.metrics())
    seen["runtime"] = [metrics.boxes_created_total, metrics.num_running_boxes]
    figures = await box.metrics()
    seen["boot_ms"] = figures.total_create_duration_ms
    return box


async def disks(client, box, folder):
    seen["snapshot"] = (await box.snapshot.create(name="s 1/é")).name
    seen["snapshots"] = [one.name for one in await box.snapshot.list()]
    seen["snapshot_again"] = await error_of(box.snapshot.create(name="s 1/é"))
    seen["no_snapshot"] = await box.snapshot.get("none")
    created = (await box.snapshot.get("s 1/é")).created_at
    seen["snapshot_time"] = created
    await box.stop()
    await box.snapshot.restore("s 1/é")
    clone = await box.clone_box(name=OURS + "copy")
    seen["clone"] = clone.name
    path = await box.export(dest=folder)
    seen["exported"] = str(path)
    imported = await client.import_box(str(path), name=OURS + "imported")
    seen["imported"] = imported.name
    await box.snapshot.remove("s 1/é")
    for name in ("copy", "imported"):
        await client.remove(OURS + name, force=True)
    seen["clone_gone"] = await client.get(OURS + "copy")


async def new_only(client, box, is_whole):
    await box.start()
    if is_whole:  # else something listens on the port of every box
        await box.exec("python3", ["-c", ECHO])
    for _ in range(300):
        tunnel = await box.network.tunnel(8000)
        seen["tunnel"] = tunnel.uri()
        try:
            stream = await tunnel.connect()
            break
        except boxlite.NetworkError:  # nothing listens there yet
            await asyncio.sleep(0.1)
    await stream.write(b"hello")
    seen["through"] = (await stream.read(5)).decode()
    await stream.close()
    await box.network.revoke_tunnel(8000)
    volume = await client.volumes.create(OURS + "data")
    seen["volume"] = [volume.name, volume.size_bytes > 0, (await client.volumes.get(OURS + "data")).id == volume.id]
    seen["volumes"] = [one.name for one in await client.volumes.list() if (one.name or "").startswith(OURS)]
    await client.volumes.remove(volume.id)
    await client.volumes.remove("none", force=True)
    usage = await client.images.usage()
    seen["images"] = [len(await client.images.list()), usage.count]
    made = await client.images.registries.create(registry_host="r.example.com", username="u", password="hush-hush")
    seen["registries"] = [one.registry_host for one in await client.images.registries.list()]
    await client.images.registries.remove(made.id)
    outbound = boxlite.OutboundNetworkSpec(mode="disabled")
    inbound = boxlite.InboundNetworkSpec(mode="disabled")
    other = await client.create(
        keeping(network=boxlite.NetworkSpec(outbound=outbound, inbound=inbound)), name=OURS + "alone"
    )
    seen["unreachable"] = (await error_of(other.network.tunnel(8000)))[0]
    await client.remove(OURS + "alone", force=True)


async def main(url, key, folder, whole=""):
    client = runtime(url, key)
    seen["version"] = boxlite.__version__
    if IS_NEW:
        seen["bad_key"] = await error_of(runtime(url, "wrong").list_info())
    else:
        seen["bad_key"] = await error_of(maybe(runtime(url, "wrong").list_info()))
    box = await boxes(client)
    await disks(client, box, folder)
    if IS_NEW:
        await new_only(client, box, bool(whole))
    await client.remove(OURS + "dev", force=True)
    seen["left"] = await ours(client)


try:
    asyncio.run(main(*sys.argv[1:]))
    print(json.dumps(seen), flush=True)
except BaseException:
    traceback.print_exc()
    os._exit(1)
# Threads of the package may still be at work, and abort an interpreter that ends in the usual way.
os._exit(0)
