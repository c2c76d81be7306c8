"""Drives executions and files with the published `boxlite` package, whichever version is installed here, and prints
what it saw as JSON.

Run by `test_clients_executions.py` in an environment of that package's own: URL, API key, and a folder to write to.
"""

import asyncio
import json
import os
import pathlib
import sys
import time

import boxlite

IS_NEW = hasattr(boxlite, "ApiKeyCredential")
seen = {}


def runtime(url, key):
    if IS_NEW:
        return boxlite.Boxlite.rest(boxlite.BoxliteRestOptions(url=url, credential=boxlite.ApiKeyCredential(key)))
    return boxlite.Boxlite.rest(boxlite.BoxliteRestOptions(url=url, client_id="tests", client_secret=key))


def keeping(**more):
    """Options of a box that stays when it stops."""
    return boxlite.BoxOptions(image="host", **({"auto_delete": 0} if IS_NEW else {"auto_remove": False}), **more)


def text(chunk):
    return chunk.decode() if isinstance(chunk, bytes) else chunk


async def printed(stream):
    return "".join([text(chunk) async for chunk in stream])


async def finished(execution):
    """What an execution printed, and its code."""
    stdout, stderr = await asyncio.gather(printed(execution.stdout()), printed(execution.stderr()))
    return [stdout, stderr, (await execution.wait()).exit_code]


async def run(box, command, *args, **options):
    return await finished(await box.exec(command, list(args), options.pop("env", None), **options))


async def simple(box):
    seen["echo"] = await run(box, "echo", "a b", "$x")
    seen["streams"] = await run(box, "sh", "-c", "echo o; echo e >&2; exit 3")
    seen["characters"] = (await run(box, "sh", "-c", "printf '\\303'; sleep .4; printf '\\251'"))[0]
    seen["no_text"] = (await run(box, "sh", "-c", "printf 'a\\377b'"))[0]
    seen["variables"] = (await run(box, "sh", "-c", "echo $A $PWD", env=[("A", "1")], cwd="/usr"))[0]
    seen["much"] = len((await run(box, "sh", "-c", "seq 200000"))[0])
    seen["missing"] = (await run(box, "no-such-program"))[2]
    late = await box.exec("sh", ["-c", "echo early"])
    await asyncio.sleep(0.5)
    seen["late"] = await finished(late)
    many = await asyncio.gather(*(run(box, "sh", "-c", f"sleep 0.1; echo {n}") for n in range(6)))
    seen["many"] = [one[0] for one in many]
    waited = await box.exec("sh", ["-c", "exit 4"])
    seen["waited"] = (await waited.wait()).exit_code


async def with_input(box):
    execution = await box.exec("cat")
    stdin = execution.stdin()
    for part in (b"ab", b"c\n"):
        await stdin.send_input(part)
    await stdin.close()
    seen["input"] = await finished(execution)
    execution = await box.exec("wc", ["-c"])
    stdin = execution.stdin()
    for _ in range(10):
        await stdin.send_input(b"x" * 30_000)
    await stdin.close()
    seen["much_input"] = (await finished(execution))[0].strip()


async def ended(box):
    execution = await box.exec("sleep", ["30"])
    await execution.kill()
    seen["killed"] = (await execution.wait()).exit_code
    began = time.monotonic()
    execution = await box.exec("sleep", ["30"], timeout_secs=0.5)
    result = await execution.wait()
    seen["timed_out"] = [result.exit_code, time.monotonic() - began < 25]
    seen["timed_out_error"] = getattr(result, "error_message", None)
    if IS_NEW:
        execution = await box.exec(
            "sh", ["-c", "trap 'echo caught; exit 7' TERM; echo on; while :; do sleep 0.05; done"]
        )
        stdout = execution.stdout()
        heard = text(await anext(stdout))
        await execution.signal(15)
        heard += await printed(stdout)
        seen["signalled"] = [heard, (await execution.wait()).exit_code]


async def terminal(box):
    execution = await box.exec("sh", ["-c", "read go; stty size"], tty=True)
    await execution.resize_tty(43, 117)
    await asyncio.sleep(0.2)
    await execution.stdin().send_input(b"\n")
    seen["terminal"] = [await printed(execution.stdout()), (await execution.wait()).exit_code]


async def files(box, folder):
    tree = os.path.join(folder, "d")
    os.makedirs(os.path.join(tree, "s"))
    for name, content in (("a", "1"), ("s/b", "2")):
        pathlib.Path(tree, name).write_text(content)
    os.chmod(os.path.join(tree, "s/b"), 0o750)
    await box.copy_in(os.path.join(tree, "a"), "/tmp/f/new.txt")
    await box.copy_in(os.path.join(tree, "a"), "/tmp/f/")
    await box.copy_in(tree, "/tmp/t")
    await box.copy_in(tree, "/tmp/t")
    shown = await run(box, "sh", "-c", "cd /tmp && find f t -type f | sort && stat -c %a t/s/b && cat f/new.txt")
    seen["copied_in"] = shown[0].split()
    out = os.path.join(folder, "out")
    os.makedirs(out)
    await run(box, "sh", "-c", "mkdir -p /tmp/o/s; printf one > /tmp/o/f; printf two > /tmp/o/s/g")
    await box.copy_out("/tmp/o", os.path.join(out, "dir"))
    await box.copy_out("/tmp/o/f", os.path.join(out, "file"))
    seen["copied_out"] = sorted(
        [os.path.relpath(os.path.join(place, name), out) for place, _, names in os.walk(out) for name in names]
    )
    try:
        await box.copy_out("/tmp/none", os.path.join(out, "none"))
    except Exception as error:  # their own class is what is looked at
        seen["copied_none"] = [type(error).__name__, "404" in str(error) or "not found" in str(error).lower()]


async def easy(client):
    async with boxlite.SimpleBox(image="host", runtime=client) as box:
        result = await box.exec("echo", "Hello", env={"A": "1"})
        seen["simple_box"] = [result.exit_code, result.stdout, result.stderr]
        result = await box.exec("sh", "-c", "exit 5")
        seen["simple_box_code"] = result.exit_code
        result = await box.exec("sleep", "30", timeout=0.5)
        seen["simple_box_timeout"] = result.exit_code


async def coding(client, image):
    """The documented example of `CodeBox`."""
    async with boxlite.CodeBox(image=image, runtime=client) as box:
        seen["code_box"] = await box.run("print('Hello, World!')")
        seen["code_box_file"] = await box.run("open('/x', 'w').write('y')\nprint(open('/x').read())")


async def attached(client):
    """The main command."""
    box = await client.create(keeping(entrypoint=["sh", "-c", "echo main; read line; echo got $line; exit 6"]))
    await box.start()
    execution = await box.attach()
    stdout = execution.stdout()
    heard = text(await anext(stdout))
    await execution.stdin().send_input(b"it\n")
    heard += await printed(stdout)
    seen["attached"] = [heard, (await execution.wait()).exit_code]
    await client.remove(box.id, force=True)


async def main(url, key, folder, image):
    client = runtime(url, key)
    seen["version"] = boxlite.__version__
    box = await client.create(keeping(), name="executing")
    await simple(box)  # nobody has started it
    seen["state"] = (await client.get_info("executing")).state.running
    await with_input(box)
    await ended(box)
    await terminal(box)
    await files(box, folder)
    await easy(client)
    await coding(client, image)
    if IS_NEW:
        await attached(client)
    await box.stop()
    seen["after_stop"] = (await run(box, "echo", "again"))[0]
    await client.remove("executing", force=True)
    json.dump(seen, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # threads of the package's own now and then take the interpreter down while it ends


asyncio.run(main(*sys.argv[1:]))
