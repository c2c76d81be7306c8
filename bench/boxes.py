"""Boxes, over their own wire and out of the library: what making, copying, pausing and filling one cost.

The server is one of its own: its key must be known. Everything else about it is as it comes.
"""

import contextlib
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path

from bench.boxes_client import Boxes, archive
from bench.boxes_crowd import crowd
from bench.boxes_disks import copies, forks
from bench.boxes_embedded import embedded
from bench.context import Bench, ratio
from bench.docker import Docker, add_python, docker
from bench.engine import pausing
from bench.measure import BenchError, Figure, Sample, Timing, interleaved
from bench.programs import HELLO, PYTHON, TRUE, bare, bubblewrap
from bench.server import serving

__all__ = ["boxes"]

KEY = f"sk_{'b0' * 32}"
FILE_BYTES = 512 << 20
TURNS = 3
"""Of everything that moves so much."""
IMPORT_S = 120.0
MIB = 1 << 20
_CONFIG = f'[server]\napi_key = "{KEY}"\n'
_IMAGE = "stockade-bench/python:1"
_NO_NETWORK = {"network": {"mode": "disabled"}}

HOST = "box: create and first exec of true"
ALONE, IMAGE, IN_A_ROW = f"{HOST}, without network", f"{HOST}, image of its own", f"{HOST}, in a row"
EXEC, BARE = "box: exec true", "bare python3 -c, between boxes"
BUBBLEWRAP = "bubblewrap + true, between boxes"
DOCKER, BESIDE = "docker run -d and docker exec true", f"{HOST}, beside docker"
LIBRARY, OPENED = "library: Sandbox() and first exec of true", "library: the first Sandbox() of a process"
PAUSE, RESUME = "box: pause", "box: resume"
UPLOAD, DOWNLOAD = f"box: upload of {FILE_BYTES // MIB} MiB", f"box: download of {FILE_BYTES // MIB} MiB"


def boxes(bench: Bench) -> None:
    """All of it, the small before the large."""
    directory = bench.directory / "boxes"
    directory.mkdir()
    with serving(directory, config=_CONFIG) as server, contextlib.closing(Boxes(server.url, KEY)) as client:
        image_bytes = _import_image(server.url, directory)
        _in_turns(bench, client, image_bytes)
        _in_library(bench, directory)
        _pauses(bench, client)
        _files(bench, client)
        copies(bench, client)
        forks(bench, client, server.url, KEY)
        with _engine(bench) as engine:
            if engine is not None:
                _beside_docker(bench, client, engine)
            crowd(bench, server.url, KEY, engine)


def _first(client: Boxes, image: str, **body: object) -> Sample:
    """Create a box and see `true` end in it. Its end is not on the bill."""

    def sample() -> float:
        began = time.perf_counter()
        box = client.create(image, **body)
        client.exec(box, TRUE)
        seconds = time.perf_counter() - began
        client.remove(box)
        return seconds

    return sample


def _import_image(url: str, directory: Path) -> int:
    """Bring an image with the host's Python there, as `docker save` would have packed it; the bytes of its layer."""
    path = directory / "image.tar"
    layer = BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as content:
        add_python(content)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["/usr/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer.getbuffer()).hexdigest()}"]},
    }
    files = {
        "layer.tar": layer.getvalue(),
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(
            [{"Config": "config.json", "RepoTags": [_IMAGE], "Layers": ["layer.tar"]}]
        ).encode(),
    }
    with tarfile.open(path, "w") as packed:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            packed.addfile(entry, BytesIO(data))
    command = [
        sys.executable, "-m", "stockade", "image", "import", str(path), _IMAGE, "--quiet", "--url", url,
        "--api-key", KEY,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_S)
    if done.returncode:
        raise BenchError(f"stockade image import: {done.stderr.strip()[-500:]}")
    path.unlink()
    return len(layer.getbuffer())


def _in_turns(bench: Bench, client: Boxes, image_bytes: int) -> None:
    """One client, in turns with bare Python and bubblewrap."""
    results, rounds = bench.results, bench.options.rounds
    box = client.create("host")
    client.exec(box, TRUE)
    in_turns: dict[str, Sample] = {
        HOST: _first(client, "host"),
        BARE: bare((PYTHON, "-c", HELLO), b"hello\n"),
        IMAGE: _first(client, _IMAGE),
        EXEC: lambda: client.true(box),
        ALONE: _first(client, "host", **_NO_NETWORK),
    }
    confined = bubblewrap((TRUE,), b"")
    if confined is not None:
        in_turns[BUBBLEWRAP] = confined
    results.add(interleaved(in_turns, rounds=rounds))
    results.add({IN_A_ROW: Timing(name=IN_A_ROW, seconds=tuple(in_turns[HOST]() for _ in range(rounds)))})
    stages = client.boot_timing(box)
    client.remove(box)
    times = results.timings
    told = ", ".join(f"{name.removesuffix('_ms')} {value}" for name, value in stages.items() if value)
    for name, note in (
        (HOST, f"{ratio(times, HOST, BARE):.2f} of bare Python in the same turns; the server tells of one: {told} ms"),
        (IMAGE, f"the system's Python in a layer of {image_bytes / 1e6:.0f} MB, imported before"),
    ):
        results.figures.append(Figure(name=name, value=times[name].median * 1e3, unit="ms", most=10, note=note))
    results.figures += [
        Figure(name=ALONE, value=times[ALONE].median * 1e3, unit="ms"),
        Figure(name=EXEC, value=times[EXEC].median * 1e3, unit="ms", note="two requests: to start it, and its output"),
    ]


def _in_library(bench: Bench, directory: Path) -> None:
    """The same out of a program of its own, in turns with bare Python."""
    results = bench.results
    plain = bare((PYTHON, "-c", HELLO), b"hello\n")
    opened: list[float] = []
    for _ in range(TURNS):
        with embedded(directory) as (first_s, _):
            opened.append(first_s)
    with embedded(directory) as (_, sample):
        results.add(interleaved({LIBRARY: sample, f"{BARE}, library": plain}, rounds=bench.options.rounds))
    results.add({OPENED: Timing(name=OPENED, seconds=tuple(opened))})
    times = results.timings
    share = f"{ratio(times, LIBRARY, f'{BARE}, library'):.2f} of bare Python in the same turns"
    results.figures += [
        Figure(name=LIBRARY, value=times[LIBRARY].median * 1e3, unit="ms", most=10, note=share),
        Figure(name=OPENED, value=times[OPENED].median * 1e3, unit="ms", note="`import stockade` and an engine"),
    ]


@contextlib.contextmanager
def _engine(bench: Bench) -> Iterator[Docker | None]:
    """Docker, where it can be had."""
    with contextlib.ExitStack() as held:
        try:
            engine: Docker | None = held.enter_context(docker(bench.directory))
        except BenchError as error:
            bench.results.skipped.append(f"boxes beside docker: {error}")
            engine = None
        yield engine


def _beside_docker(bench: Bench, client: Boxes, engine: Docker) -> None:
    """In turns with a container that is made and entered."""
    results = bench.results
    contestants: dict[str, Sample] = {BESIDE: _first(client, _IMAGE), DOCKER: engine.entering((TRUE,))}
    results.add(interleaved(contestants, rounds=bench.options.docker_rounds, warm_up=1))
    times = results.timings
    results.figures.append(
        Figure(
            name="box: create and first exec ÷ docker run -d and exec",
            value=ratio(times, BESIDE, DOCKER),
            note=f"{times[BESIDE].median * 1e3:.1f} ms ÷ {times[DOCKER].median * 1e3:.0f} ms, of the same image",
        )
    )


def _pauses(bench: Bench, client: Boxes) -> None:
    """Of a box with a process in it that keeps a processor busy: over HTTP, and by the backend alone."""
    results, rounds = bench.results, max(20, bench.options.rounds // 2)
    box = client.create("host", cmd=["/bin/sh", "-c", "while :; do :; done"])
    client.timed(box, "start")
    over_http: dict[str, Sample] = {
        PAUSE: lambda: client.timed(box, "pause"),
        RESUME: lambda: client.timed(box, "resume"),
    }
    results.add(interleaved(over_http, rounds=rounds))
    client.remove(box)
    with pausing(bench.directory / "pausing") as (pause, resume):
        alone = {f"{PAUSE}, backend alone": pause, f"{RESUME}, backend alone": resume}
        results.add(interleaved(alone, rounds=rounds))
    for name in (PAUSE, RESUME):
        least = results.timings[f"{name}, backend alone"].median * 1e3
        value = results.timings[name].median * 1e3
        note = f"over HTTP, recorded; the backend alone {least:.2f} ms; a loop runs in it"
        results.figures.append(Figure(name=name, value=value, unit="ms", most=5, note=note))


def _files(bench: Bench, client: Boxes) -> None:
    """A tar of one large file, in and out again."""
    results = bench.results
    found: dict[str, list[float]] = {UPLOAD: [], DOWNLOAD: []}
    box = client.create("host")
    source, size = archive("file", FILE_BYTES)
    try:
        for _ in range(TURNS):
            found[UPLOAD].append(client.upload(box, "/tmp/file", source, size))
            seconds, count = client.download(box, "/tmp/file")
            if count < FILE_BYTES:
                raise BenchError(f"{DOWNLOAD}: {count} bytes came")
            found[DOWNLOAD].append(seconds)
        client.exec(box, PYTHON, "-c", f"import os; assert os.stat('/tmp/file').st_size == {FILE_BYTES}")
    finally:
        os.close(source)
        client.remove(box)
    results.add({name: Timing(name=name, seconds=tuple(seconds)) for name, seconds in found.items()})
    for name in found:
        value = FILE_BYTES / results.timings[name].median / 1e6
        note = "a tar of one file, to a disk on the host's, and from it" if name == UPLOAD else ""
        results.figures.append(Figure(name=name, value=value, unit="MB/s", least=150, note=note))
