"""What images say of themselves."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.engine.image_config import parse_config, parse_groups, parse_users, resolve_user, user_ids
from stockade.engine.image_manifests import BadManifest, Platform
from stockade.errors import Invalid
from stockade.model.images import ImageConfig, ImageUser

DIFF_ID = "sha256:" + "ab" * 32
USERS = {
    "root": ImageUser(uid=0, gid=0, home="/root"),
    "app": ImageUser(uid=1000, gid=50, home="/srv"),
}


def document(own: object = None, **changes: Any) -> bytes:
    base = {
        "architecture": Platform.of_this_machine().architecture,
        "os": "linux",
        "config": own,
        "rootfs": {"type": "layers", "diff_ids": [DIFF_ID]},
    }
    return json.dumps({**base, **changes}).encode()


def test_what_an_image_says_is_read() -> None:
    own = {
        "Entrypoint": ["/docker-entrypoint.sh"],
        "Cmd": ["nginx", "-g", "daemon off;"],
        "Env": ["PATH=/usr/bin", "A=b=c", "EMPTY=", "LEFT_OUT"],
        "WorkingDir": "/srv/../app//",
        "User": "nginx:staff",
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}, "9000-9001": {}},
        "Labels": {"a": "b"},
        "Volumes": {"/data": {}},
    }
    found = parse_config(document(own))
    assert found.diff_ids == (DIFF_ID,)
    assert found.config == ImageConfig(
        entrypoint=("/docker-entrypoint.sh",),
        command=("nginx", "-g", "daemon off;"),
        env={"PATH": "/usr/bin", "A": "b=c", "EMPTY": ""},
        cwd="/app",
        user="nginx:staff",
        exposed_ports=("53/udp", "80/tcp", "9000/tcp", "9001/tcp"),
        labels={"a": "b"},
    )


@pytest.mark.parametrize("own", [None, {}, {"Entrypoint": None, "Cmd": None, "Env": None, "User": ""}])
def test_an_image_that_says_nothing_runs_as_root_in_the_root_directory(own: object) -> None:
    assert parse_config(document(own)).config == ImageConfig(cwd="/", user="root")


@pytest.mark.parametrize(
    "own",
    [
        [1],
        {"Env": ["=x"]},
        {"Env": ["A=\0"]},
        {"Env": ["A=" + "x" * 40_000]},
        {"Env": [1]},
        {"Env": ["A=1"] * 1001},
        {"Cmd": ["\ud800"]},
        {"Cmd": {"a": 1}},
        {"User": 5},
        {"User": "x" * 40_000},
        {"WorkingDir": "/" + "a" * 5000},
        {"Labels": {"a": 1}},
        {"ExposedPorts": {"http": {}}},
        {"ExposedPorts": {"70000/tcp": {}}},
        {"ExposedPorts": {"2-1/tcp": {}}},
    ],
)
def test_what_no_sandbox_can_have_is_refused(own: object) -> None:
    with pytest.raises(BadManifest):
        parse_config(document(own))


@pytest.mark.parametrize(
    "changes",
    [
        {"os": "windows"},
        {"architecture": "pdp11"},
        {"rootfs": None},
        {"rootfs": {"diff_ids": []}},
        {"rootfs": {"diff_ids": ["sha256:1"]}},
        {"rootfs": {"diff_ids": [DIFF_ID] * 128}},
    ],
)
def test_an_image_that_cannot_be_had_here_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadManifest):
        parse_config(document({}, **changes))


def test_a_wide_range_of_ports_is_cut() -> None:
    assert len(parse_config(document({"ExposedPorts": {"1-65535": {}}})).config.exposed_ports) == 1000


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.dictionaries(
        st.sampled_from(["Entrypoint", "Cmd", "Env", "WorkingDir", "User", "ExposedPorts", "Labels"]), _JSON
    )
)
def test_whatever_it_says_is_read_or_refused(own: dict[str, Any]) -> None:
    try:
        found = parse_config(document(own)).config
    except BadManifest:
        return
    assert found.cwd.startswith("/")
    assert "\0" not in "".join((*found.entrypoint, *found.command, *found.env, *found.env.values(), found.user))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_configuration_or_refused(content: bytes) -> None:
    with pytest.raises(BadManifest):
        parse_config(content)


def test_users_and_groups_are_read_line_by_line() -> None:
    passwd = (
        b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:50::/srv:\nbad:x:99999:0::/:\nshort:x:1\n\xff:x:2:2::/:\n+::::::\n"
    )
    assert parse_users(passwd) == USERS | {"\ufffd": ImageUser(uid=2, gid=2, home="/")}
    assert parse_groups(b"root:x:0:\nstaff:x:50:app\nhuge:x:70000:\n") == {"root": 0, "staff": 50}


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("root", "root"), ("", "root"), ("0", "root"), ("0:0", "root"), ("app", "1000:50"), ("1000", "1000:50"),
        ("1000:7", "1000:7"), ("app:staff", "1000:50"), ("2000", "2000:0"), ("root:staff", "0:50"),
        ("65534", "65534:0"),
    ],
)  # fmt: skip
def test_a_user_is_resolved_as_the_image_has_it(text: str, user: str) -> None:
    assert resolve_user(text, USERS, {"staff": 50}) == user
    assert ":".join(map(str, user_ids(user))) == ("0:0" if user == "root" else user)


@pytest.mark.parametrize("text", ["nobody", "65535", "99999999999", "app:none", "1:65535", "-1", "1.5", "app:", ":"])
def test_a_user_that_is_not_there_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        resolve_user(text, USERS)
