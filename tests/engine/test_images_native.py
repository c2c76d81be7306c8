"""Images with the real parts: disks, workshops, and sandboxes that are made from them."""

import contextlib
import os
import re
import subprocess
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from stockade.backends.base import BackendOptions
from stockade.backends.native.backend import NativeBackend
from stockade.backends.sandboxing import LiveExec, LiveSpec
from stockade.config_boxes import RegistriesConfig
from stockade.engine.builds import BuildOptions, Builds
from stockade.engine.image_debian import Debian
from stockade.engine.image_layouts import DockerArchive, OciLayout
from stockade.engine.image_manifests import BadManifest
from stockade.engine.image_store import ImageStore
from stockade.engine.images import Image, Images
from stockade.engine.tasks import Tasks
from stockade.engine.workshops import Workshops
from stockade.model import Actor, BuildFile, BuildSpec, NetworkMode, Outcome
from stockade.model.images import ImageUser
from stockade.store import BuildTable, Database
from stockade.store.images import ImageTable
from tests.backends.sandboxes import MB, limits
from tests.engine.image_fakes import docker_archive, layer, made, oci_layout

pytestmark = pytest.mark.anyio

LONG = pytest.mark.skipif(not os.environ.get("STOCKADE_LONG_TESTS"), reason="takes long: STOCKADE_LONG_TESTS=1")
PROGRAMS = ("dash", "cat", "ls", "stat", "chown", "ln", "rm")
NO_BUILD = BuildSpec()
PASSWD = b"root:x:0:0::/root:/bin/sh\napp:x:1000:50::/srv:/bin/sh\n"


@dataclass
class Host:
    """A warden with disks, and the images of one server."""

    backend: NativeBackend
    store: ImageStore
    images: Images
    builds: Builds
    tasks: Tasks
    directory: Path

    async def run(self, image: Image, script: str, *, user: str | None = None, build: BuildSpec = NO_BUILD) -> str:
        """What *script* prints in a new sandbox of *image*."""
        name = f"image-{os.urandom(6).hex()}"
        user = user or image.user
        async with self.builds.layer(image, build, account_id="", base=image.cwd) as layer:
            spec = LiveSpec(
                image=image.name, layers=image.layers, layer=layer, limits=LIMITS, cwd=image.cwd, lifetime_s=60.0
            )
            await self.backend.sandboxing.create(name, spec)
        try:
            argv = ("/bin/sh", "-c", script)
            env = image.environment({}, user=user)
            streams = await self.backend.sandboxing.exec(
                name, "script", LiveExec(argv=argv, env=env, cwd=image.cwd, user=user)
            )
            printed, stdout, stderr = b"", 0, 0
            while True:
                output = await streams.read(stdout, stderr)
                printed += output.stdout.data + output.stderr.data
                stdout, stderr = output.stdout.end, output.stderr.end
                if output.end is not None:
                    streams.close()
                    assert output.end.outcome is Outcome.EXITED
                    return printed.decode()
        finally:
            await self.backend.sandboxing.remove(name)

    async def is_clean(self) -> bool:
        """No disk and no sandbox is left, but for what is on record."""
        named = {layer.disk for record in self.store.list(OPERATOR) for layer in record.layers}
        left = [disk for disk in await self.backend.disks.list() if disk.name not in named]
        return not left and not await self.backend.sandboxing.inventory()


LIMITS = limits(memory_bytes=256 * MB, disk_bytes=64 * MB)
OPERATOR = Actor(id="operator", is_admin=True)


@pytest.fixture(scope="module")
async def host(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[Host]:
    directory = tmp_path_factory.mktemp("images")
    unenforced = ("memory", "swap", "processes", "cpu_rate", "cpu_time", "own_ids") if os.geteuid() else ()
    backend = NativeBackend(
        BackendOptions(data_dir=directory, embedded=True, allow_unenforced=(*unenforced, "disk_size"))
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(backend.close)
        await backend.start()
        facts = await backend.disks.facts()
        if facts.kind == "none":
            pytest.skip(f"no disks: {facts.why}")
        database = await stack.enter_async_context(await Database.open(directory / "stockade.db"))
        tasks = Tasks()
        store = ImageStore(
            table=ImageTable(database=database, server_id="here"),
            disks=backend.disks,
            workshops=Workshops(backend=backend.sandboxing, limits=replace(LIMITS, wall_s=60.0), tasks=tasks),
            tasks=tasks,
            options=RegistriesConfig(most_image_bytes=256 * MB),
        )
        images = Images(stored=store)
        builds = Builds(
            backend=backend.sandboxing,
            images=images,
            table=BuildTable(database=database, server_id="here"),
            directory=directory / "builds",
            options=BuildOptions(limits=replace(LIMITS, wall_s=60.0), network=NetworkMode.NONE),
            tasks=tasks,
        )
        builds.prepare()
        await stack.enter_async_context(tasks.running())
        await stack.enter_async_context(store.running())
        yield Host(backend, store, images, builds, tasks, directory)


@pytest.fixture(scope="module")
def system() -> bytes:
    """A layer with a shell, a few programs and what they need, from this machine."""
    files: dict[str, bytes | str | None] = {"bin/": None, "etc/passwd": PASSWD, "etc/group": b"staff:x:50:\n"}
    for program in PROGRAMS:
        path = f"/usr/bin/{program}"
        files[f"bin/{program}"] = Path(path).read_bytes()
        needs = subprocess.run(["ldd", path], capture_output=True, text=True, check=True, timeout=10).stdout
        for library in re.findall(r"(/\S+) \(0x", needs):
            files[library.lstrip("/")] = Path(library).read_bytes()
    files["bin/sh"] = "dash"
    return layer(files)


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", **members: int) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.mode = kind, target, 0o755
    for member, value in members.items():
        setattr(found, member, value)
    return found


async def test_a_sandbox_sees_the_image_with_its_owners_whiteouts_and_links(
    host: Host, system: bytes, tmp_path: Path
) -> None:
    long = "d" * 200 + "/" + "f" * 200
    lower = layer(
        {
            "srv/gone": b"1",
            "srv/kept": b"2",
            "hidden/one": b"3",
            "hidden/deep/two": b"4",
            "was-file": b"5",
            "bin/hello": b"",
        },
        [
            entry("srv", tarfile.DIRTYPE, uid=1000, gid=50),
            entry("srv/own", uid=1000, gid=50, mode=0o640),
            entry("srv/hard", tarfile.LNKTYPE, "srv/kept"),
            entry("srv/absolute", tarfile.SYMTYPE, "/srv/kept"),
            entry("set-id", uid=0, mode=0o4755),
            entry("high", uid=65534, gid=65534),
            entry(long),
        ],
    )
    upper = layer(
        {"srv/.wh.gone": b"", "hidden/.wh..wh..opq": b"", "hidden/new": b"6", "was-file/now": b"7"},
        [entry("srv", tarfile.DIRTYPE, uid=1000, gid=50)],  # as all builders write what leads to a change
    )
    image = made(
        system,
        lower,
        upper,
        config={
            "User": "app",
            "WorkingDir": "/srv",
            "Cmd": ["/bin/sh"],
            "Env": ["A=1"],
            "ExposedPorts": {"80/tcp": {}},
        },
    )
    record = await host.store.add(OciLayout(oci_layout(tmp_path / "layout", image)), reference="made:1")
    assert record.config.users == {
        "root": ImageUser(uid=0, gid=0, home="/root"),
        "app": ImageUser(uid=1000, gid=50, home="/srv"),
    }
    found = host.images.find("made:1")
    assert (found.user, found.cwd, found.exposed_ports) == ("1000:50", "/srv", ("80/tcp",))
    script = f"""
        echo $A $HOME; ls; ls /hidden /was-file; cat kept hard absolute /hidden/new
        echo; stat -c '%u:%g %a' /srv own /high /set-id; stat -c %h kept; ls /{long} >/dev/null && echo long
        echo changed > own && echo written; (echo no > /high) 2>/dev/null || echo refused
    """
    said = await host.run(found, script)
    assert said.split("\n") == [
        "1 /srv", "absolute", "hard", "kept", "own", "/hidden:", "new", "", "/was-file:", "now", "2226",
        "1000:50 755", "1000:50 640", "65534:65534 755", "0:0 4755", "2", "long", "written",
        "refused", "",
    ]  # fmt: skip
    as_root = await host.run(
        found, "cat own; chown 7:8 own; ln own other; rm kept; stat -c %u:%g other; ls", user="root"
    )
    assert as_root.split() == ["7:8", "absolute", "hard", "other", "own"]
    assert (await host.run(found, "ls; cat own")).split() == ["absolute", "hard", "kept", "own"]  # untouched
    await host.store.remove(OPERATOR, "made:1")
    assert await host.is_clean()


async def test_a_build_on_an_image_from_elsewhere(host: Host, system: bytes, tmp_path: Path) -> None:
    image = made(system, pack="zstd", config={"WorkingDir": "/work"})
    await host.store.add(OciLayout(oci_layout(tmp_path / "layout", image)), reference="base")
    found = host.images.find("base")
    build = BuildSpec(setup=("cat /etc/group > /copy", "rm /etc/group"), files=(BuildFile(path="own", content=b"hi"),))
    said = await host.run(found, "cat /copy own; ls /etc/passwd /etc/group 2>/dev/null", build=build)
    assert said.split() == ["staff:x:50:", "hi/etc/passwd"]
    assert (host.builds.made, host.builds.hits) == (1, 0)
    assert await host.run(found, "cat own", build=build) == "hi"
    assert host.builds.hits == 1
    await host.store.remove(OPERATOR, "base")


def damaged() -> bytes:
    whole = layer({"a": b"1" * 5000, "b": b"2" * 5000})
    return whole[:6000]


OUTSIDE = {
    "a climbing name": [entry("../outside")],
    "a name that climbs later": [entry("a/../../outside")],
    "an absolute name": [entry("/../outside")],
    "a file through a link": [entry("link", tarfile.SYMTYPE, "/etc"), entry("link/outside")],
    "a hard link to outside": [entry("hard", tarfile.LNKTYPE, "../../../etc/passwd")],
    "an absolute hard link": [entry("hard", tarfile.LNKTYPE, "/../etc/passwd")],
    "a disk": [entry("sda", tarfile.BLKTYPE, devmajor=8)],
    "the host's memory": [entry("mem", tarfile.CHRTYPE, devmajor=1, devminor=1)],
    "a whiteout of nothing": [entry(".wh.")],
    "a whiteout that climbs": [entry("a/.wh...")],
    "a name too long": [entry("n" * 300)],
}


@pytest.mark.parametrize("name", OUTSIDE)
async def test_a_hostile_layer_leaves_nothing(host: Host, tmp_path: Path, name: str) -> None:
    image = made(layer({"first": b"1"}, OUTSIDE[name]))
    with pytest.raises(BadManifest):
        await host.store.add(OciLayout(oci_layout(tmp_path / "layout", image)), reference="bad")
    assert await host.is_clean()
    assert not (host.directory / "outside").exists()


async def test_links_that_lead_out_do_so_inside_only(host: Host, system: bytes, tmp_path: Path) -> None:
    """What is written through a link of a layer below stays in the layer, and links to files of the host show none."""
    through = layer(
        {}, [entry("etc2", tarfile.SYMTYPE, "../../../../etc"), entry("shadow", tarfile.SYMTYPE, "/etc/shadow")]
    )
    image = made(system, through)
    await host.store.add(OciLayout(oci_layout(tmp_path / "layout", image)), reference="links")
    found = host.images.find("links")
    said = await host.run(found, "cat /etc2/passwd; cat /shadow", user="root")
    assert said == PASSWD.decode() + "cat: /shadow: No such file or directory\n"
    await host.store.remove(OPERATOR, "links")


async def test_bombs_and_cut_off_layers_leave_nothing(host: Host, tmp_path: Path) -> None:
    bomb = layer({"zeros": bytes(300 * MB)})
    for number, image in enumerate(
        (made(bomb, pack="zstd"), made(damaged()), made(b"x" * 1000), made(bomb[: 64 * MB]))
    ):
        with pytest.raises(BadManifest):
            await host.store.add(OciLayout(oci_layout(tmp_path / str(number), image)), reference="bad")
        assert await host.is_clean()


@pytest.mark.parametrize("count", [10, pytest.param(126, marks=LONG)])
async def test_an_image_of_many_layers(host: Host, system: bytes, tmp_path: Path, count: int) -> None:
    """127 are the most: more names would not fit into the options of a mount."""
    archives = [layer({f"layers/{number}": str(number).encode()}) for number in range(count)]
    image = made(system, *archives)
    await host.store.add(DockerArchive(docker_archive(tmp_path / "image.tar", image)), reference="many")
    said = await host.run(host.images.find("many"), f"ls /layers; cat /layers/0 /layers/{count - 1}", user="root")
    assert len(said.split()) == count + 1
    assert said.endswith(f"0{count - 1}")
    await host.store.remove(OPERATOR, "many")
    assert await host.is_clean()


def greeting(directory: Path) -> Path:
    """A Debian package."""
    package = directory / "package"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "usr/share/greeting").mkdir(parents=True)
    (package / "usr/share/greeting/text").write_text("hello\n")
    (package / "DEBIAN/control").write_text(
        "Package: greeting\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: greets\n"
    )
    (package / "DEBIAN/postinst").write_text(
        "#!/bin/sh\nadduser --system greeter --quiet --no-create-home || useradd -r greeter\n"
    )
    (package / "DEBIAN/postinst").chmod(0o755)
    deb = directory / "greeting.deb"
    subprocess.run(["dpkg-deb", "--build", str(package), str(deb)], check=True, capture_output=True, timeout=30)
    return deb


@LONG
async def test_packages_can_be_installed_in_a_debian(host: Host, tmp_path: Path) -> None:
    source = Debian(["libcap2-bin"], directory=tmp_path)
    try:
        await host.store.add(source, reference="debian")
    finally:
        await source.close()
    assert os.listdir(tmp_path) == []
    deb = greeting(tmp_path)
    found = host.images.find("debian")
    assert found.command == ("/bin/bash",)
    build = BuildSpec(
        files=(BuildFile(path="/tmp/greeting.deb", content=deb.read_bytes()),), setup=("dpkg -i /tmp/greeting.deb",)
    )
    said = await host.run(found, "cat /usr/share/greeting/text; id -u greeter", user="root", build=build)
    assert said.startswith("hello\n")
    again = BuildSpec(files=build.files, setup=("apt-get install -y /tmp/greeting.deb",))
    assert (await host.run(found, "cat /usr/share/greeting/text", user="root", build=again)) == "hello\n"
    await host.store.remove(OPERATOR, "debian")
