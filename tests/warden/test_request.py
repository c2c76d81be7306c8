"""What the warden accepts as a request: the server is not trusted to be well-behaved."""

import copy
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.warden.request import Refused, RunRequest
from tests.warden.raw import LIMITS, request

WHOLE = ("memory_bytes", "processes", "disk_bytes", "disk_inodes", "open_files", "stack_bytes", "output_bytes")
REAL = ("wall_s", "cpu_s", "cpus")
NEVER: tuple[Any, ...] = (
    0, -1, 1 << 60, 10**400, 0.0, -0.0, -1.5, math.nan, math.inf, -math.inf,
    True, False, None, "", "1", "NaN", [], [1], {},
)  # fmt: skip


def parse(message: dict[str, Any], descriptors: int = 1) -> RunRequest:
    return RunRequest.parse(message, descriptors)


def test_a_request_in_order_is_taken_as_it_is() -> None:
    parsed = parse(request(9, "/bin/echo", "x"), 3)
    assert parsed.argv == ("/bin/echo", "x")
    assert parsed.id == 9
    assert parsed.bundles == 2
    assert {name: getattr(parsed, name) for name in LIMITS} == dict(LIMITS)


@pytest.mark.parametrize("name", [*WHOLE, *REAL])
@pytest.mark.parametrize("value", NEVER, ids=repr)
def test_limits_that_limit_nothing_are_refused(name: str, value: Any) -> None:
    with pytest.raises(Refused, match=name) as refused:
        parse(request(1, **{name: value}))
    assert refused.value.kind == "invalid"


@pytest.mark.parametrize("name", WHOLE)
def test_whole_limits_take_no_fractions(name: str) -> None:
    with pytest.raises(Refused, match=name):
        parse(request(1, **{name: 4096.0}))


@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_must_be_given(name: str) -> None:
    message = request(1)
    del message["limits"][name]
    with pytest.raises(Refused, match=name):
        parse(message)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"limits": []}, "limits"),
        ({"limits": None}, "limits"),
        ({"argv": []}, "argv"),
        ({"argv": None}, "argv"),
        ({"argv": "/bin/true"}, "argv"),
        ({"argv": [""]}, "argv"),
        ({"argv": ["/bin/true", 1]}, "argv"),
        ({"argv": ["/bin/true", None]}, "argv"),
        ({"argv": ["/bin/true", "a\0b"]}, "argv"),
        ({"argv": ["/bin/true", "\ud800"]}, "argv"),
        ({"env": None}, "env"),
        ({"env": []}, "env"),
        ({"env": {"A": 1}}, "env"),
        ({"env": {"": "x"}}, "env"),
        ({"env": {"A=B": "x"}}, "env"),
        ({"env": {"A\0": "x"}}, "env"),
        ({"env": {"A": "x\0y"}}, "env"),
        ({"env": {"A": "\udfff\ud800"}}, "env"),
        ({"cwd": None}, "cwd"),
        ({"cwd": ""}, "cwd"),
        ({"cwd": "code"}, "cwd"),
        ({"cwd": "/code\0"}, "cwd"),
        ({"cwd": "/code/../etc"}, "cwd"),
        ({"cwd": "/.."}, "cwd"),
        ({"cwd": ["/code"]}, "cwd"),
        ({"id": None}, "id"),
        ({"id": True}, "id"),
        ({"id": -1}, "id"),
        ({"id": 1 << 60}, "id"),
        ({"id": 1.0}, "id"),
        ({"id": "1"}, "id"),
    ],
    ids=lambda value: str(value)[:40].encode("ascii", "backslashreplace").decode(),
)
def test_a_wrong_member_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(Refused, match=named) as refused:
        parse({**request(1), **change})
    assert refused.value.kind == "invalid"


@pytest.mark.parametrize("member", ["limits", "argv", "env", "cwd", "id"])
def test_a_missing_member_is_named(member: str) -> None:
    message = request(1)
    del message[member]
    with pytest.raises(Refused, match=member):
        parse(message)


@pytest.mark.parametrize("network", ["host", "outgoing", "", None, True, {}])
def test_another_network_is_not_supported(network: Any) -> None:
    with pytest.raises(Refused) as refused:
        parse(request(1, network=network))
    assert refused.value.kind == "unsupported"


def test_the_descriptor_of_standard_input_must_be_there() -> None:
    with pytest.raises(Refused, match="standard input"):
        parse(request(1), 0)


@pytest.mark.parametrize("value", [1, "true", [True], {}, None])
def test_only_true_is_true(value: Any) -> None:
    parsed = parse(request(1, collect=value, drop_output=value))
    assert not parsed.collect
    assert not parsed.drop_output


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_whatever_stands_for_a_member_is_taken_or_refused(data: st.DataObject) -> None:
    """No other exception: any other would be the warden's."""
    message = copy.deepcopy(request(1))
    place = data.draw(st.sampled_from([message, message["limits"]]))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(anything)
    try:
        parsed = parse(message, data.draw(st.integers(0, 8)))
    except Refused:
        pass
    else:
        assert parsed.argv
        assert all(math.isfinite(getattr(parsed, name)) and getattr(parsed, name) > 0 for name in LIMITS)
