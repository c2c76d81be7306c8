"""Between the boxlite wire and the engine: tables of pairs, without a server."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade import errors
from stockade.config import Config
from stockade.dialects.boxlite.account_routes import configuration
from stockade.dialects.boxlite.counts import BoxCounts
from stockade.dialects.boxlite.failures import Refused, from_error
from stockade.dialects.boxlite.metrics_routes import boot_timing, cpu_percent
from stockade.dialects.boxlite.settings import BoxliteSettings
from stockade.dialects.boxlite.slots import is_ours, resource_path
from stockade.dialects.boxlite.translate import (
    Measures,
    inbound,
    outbound,
    timestamp,
    to_network,
    to_request,
    with_inbound,
    with_outbound,
)
from stockade.dialects.boxlite.wire import CreateBody, NetworkBody, OutboundBody, checked
from stockade.engine import LimitPolicy
from stockade.engine.box_errors import BoxExists, BoxStateConflict, BoxStopped
from stockade.engine.image_sources import ImageUnavailable
from stockade.model import Actor, BoxState, Network, NetworkMode, Usage

LIMITS = LimitPolicy(defaults=Config().sandbox.defaults, maximum=Config().sandbox.maximum)


def measured(**settings: Any) -> Measures:
    return Measures(settings=BoxliteSettings(**settings), limits=LIMITS, actor=Actor(id="a", account_id="a"))


@pytest.mark.parametrize(
    ("path", "segments"),
    [
        ("/v1/boxes", ("boxes",)),
        ("/v1/default/boxes/b1/exec", ("boxes", "b1", "exec")),
        ("/v1/us/team-1/metrics", ("metrics",)),
        ("/v1/boxes/b/snapshots/s%201%2F%C3%A9", ("boxes", "b", "snapshots", "s 1/é")),
        ("/v1/images/r.example%2Fteam%2Fapp", ("images", "r.example/team/app")),
        ("/v1/images/a/boxes", ("images", "a", "boxes")),
        ("/v1/boxes%2Fb", None),
        ("/v1/config", None),
        ("/v1/jobs/boxes", None),
        ("/v2/boxes", None),
        ("/boxes", None),
    ],
)
def test_a_slot_ends_where_a_resource_begins(path: str, segments: tuple[str, ...] | None) -> None:
    assert resource_path({"path": path, "raw_path": path.encode()}) == segments


@given(st.text())
def test_any_path_is_ours_or_not(path: str) -> None:
    assert is_ours(path) in (True, False)


ALL = Network(mode=NetworkMode.EXPOSED)
NONE = Network(mode=NetworkMode.NONE)
ONLY_IN = Network(mode=NetworkMode.EXPOSED, allow_cidrs=(), allow_domains=())


@pytest.mark.parametrize(
    ("body", "network"),
    [
        ({}, ALL),
        ({"mode": "enabled"}, ALL),
        ({"mode": "enabled", "allow_net": []}, ALL),
        ({"mode": "disabled"}, NONE),
        (
            {"mode": "enabled", "allow_net": ["A.com", "*.b.com", "10.0.0.0/8", "1.2.3.4", "1.2.3.4"]},
            Network(
                mode=NetworkMode.EXPOSED,
                allow_cidrs=("10.0.0.0/8", "1.2.3.4/32"),
                allow_domains=("a.com", "*.b.com"),
            ),
        ),
        ({"outbound": {"mode": "enabled"}}, Network(mode=NetworkMode.OUTGOING)),
        ({"outbound": {"mode": "enabled"}, "inbound": {"mode": "disabled"}}, Network(mode=NetworkMode.OUTGOING)),
        ({"outbound": {"mode": "enabled"}, "inbound": {"mode": "enabled"}}, ALL),
        ({"outbound": {"mode": "disabled"}, "inbound": {"mode": "disabled"}}, NONE),
        ({"outbound": {"mode": "disabled"}, "inbound": {"mode": "enabled"}}, ONLY_IN),
    ],
)
def test_both_shapes_of_a_network_are_read(body: dict[str, Any], network: Network) -> None:
    assert to_network(checked(NetworkBody, body)) == network


@pytest.mark.parametrize(
    ("network", "out", "into"),
    [(ALL, "enabled", "enabled"), (NONE, "disabled", "disabled"), (ONLY_IN, "disabled", "enabled"),
     (Network(mode=NetworkMode.OUTGOING), "enabled", "disabled")],
)  # fmt: skip
def test_a_network_is_shown_as_it_was_asked_for(network: Network, out: str, into: str) -> None:
    assert (outbound(network)["mode"], inbound(network)["mode"]) == (out, into)
    same = with_inbound(network, is_enabled=into == "enabled")
    assert with_outbound(same, OutboundBody(mode=out)) == network  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("members", "stop_s", "delete_s"),
    [
        ({}, 900.0, None),
        ({"auto_remove": False}, 900.0, None),
        ({"auto_remove": True}, 86400.0, 0.0),
        ({"auto_delete": 0}, 900.0, None),
        ({"auto_delete": 1}, 86400.0, 0.0),
        ({"auto_delete": 60, "auto_stop": 0}, None, 60.0),
        ({"auto_stop": 5, "auto_remove": True}, 5.0, 0.0),
    ],
)
def test_when_a_box_ends_by_itself(members: dict[str, Any], stop_s: float | None, delete_s: float | None) -> None:
    request = to_request(checked(CreateBody, members), measured())
    assert (request.auto_stop_s, request.auto_delete_s) == (stop_s, delete_s)
    assert request.image == "alpine:latest"


def test_more_processors_than_there_are_are_cut_as_for_a_machine() -> None:
    request = to_request(checked(CreateBody, {"cpus": 32}), measured())
    assert request.limits.cpus == LIMITS.maximum.cpus


def test_a_secret_has_a_placeholder_if_none_is_named() -> None:
    body = checked(CreateBody, {"secrets": [{"name": "svc", "value": "v"}]})
    (rule,) = to_request(body, measured()).secrets
    assert (rule.placeholder, rule.hosts) == ("<BOXLITE_SECRET:svc>", ())
    assert "v'" not in repr(body)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.Invalid("x"), (400, "InvalidArgumentError", "invalid_argument")),
        (errors.Unsupported("x"), (400, "UnsupportedError", "unsupported")),
        (errors.CannotEnforce(["disk_size"]), (400, "UnsupportedError", "unsupported")),
        (errors.Denied("x"), (403, "AuthError", "permission_denied")),
        (errors.NotFound("x"), (404, "NotFoundError", "not_found")),
        (BoxExists("x"), (409, "AlreadyExistsError", "already_exists")),
        (BoxStopped("b", state=BoxState.STOPPED, operation="use"), (409, "StoppedError", "stopped")),
        (BoxStateConflict("b", state=BoxState.RUNNING, operation="x"), (409, "InvalidStateError", "invalid_state")),
        (errors.UnknownImage("x", []), (422, "ImageError", "image_pull_failed")),
        (ImageUnavailable("x"), (422, "ImageError", "image_pull_failed")),
        (errors.LimitExceeded("x"), (429, "ResourceExhaustedError", "resource_exhausted")),
        (errors.Fault("x"), (500, "InternalError", "internal")),
        (errors.BackendLost("x"), (503, "EngineError", "engine_unavailable")),
        (errors.Unavailable("x"), (503, "UpstreamUnavailableError", "upstream_unavailable")),
        (errors.NoAnswer("x"), (504, "TimeoutError", "timeout")),
        (Refused(410, "SessionReapedError", "session_reaped", "x"), (410, "SessionReapedError", "session_reaped")),
    ],
)  # fmt: skip
def test_every_kind_of_error_has_its_status_type_and_code(
    error: errors.StockadeError, expected: tuple[int, str, str]
) -> None:
    failure = from_error(error)
    assert (failure.status, failure.type, failure.code) == expected
    assert isinstance(failure.body()["error"]["code"], int)
    assert isinstance(failure.body()["code"], str)


def test_a_fault_says_nothing_of_our_innards() -> None:
    assert "/etc" not in str(from_error(errors.Fault("/etc/secret is broken")).body())


def test_times_have_a_zone() -> None:
    assert timestamp(datetime(2026, 5, 1, 10, tzinfo=UTC)) == "2026-05-01T10:00:00.000Z"


def test_a_processors_share_is_of_the_time_since_the_last_look() -> None:
    counts = BoxCounts()

    def used(cpu_s: float, wall_s: float) -> Usage:
        return Usage(wall_s=wall_s, cpu_user_s=cpu_s, cpu_system_s=0.0, memory_peak_bytes=0)

    assert cpu_percent(counts, used(1.0, 4.0), at=10.0) == 25.0
    assert cpu_percent(counts, used(3.0, 8.0), at=14.0) == 50.0
    assert cpu_percent(counts, used(0.5, 1.0), at=20.0) == 50.0, "it was started anew"


def test_nothing_is_announced_that_is_not_there() -> None:
    found = configuration(BoxliteSettings(), None, has_archives=False)["capabilities"]
    assert not any(value for name, value in found.items() if name.endswith("_enabled"))
    assert boot_timing(None) == {}
