"""Which backend a sandbox comes from."""

import pytest

from stockade.engine.backend_policy import BackendDenied, BackendPolicy, UnknownBackend
from stockade.errors import Unsupported
from stockade.model import Actor

POLICY = BackendPolicy(usual="native", offered=("native", "gvisor", "docker"))
ANYBODY = Actor(id="anybody")
CAGED = Actor(id="caged", backend="gvisor")


@pytest.mark.parametrize(("asked", "chosen"), [("", ""), ("native", ""), ("gvisor", "gvisor"), ("docker", "docker")])
def test_a_request_may_choose_among_what_is_offered(asked: str, chosen: str) -> None:
    assert POLICY.choose(ANYBODY, asked) == chosen


def test_what_is_not_offered_is_refused_and_what_is_is_told() -> None:
    with pytest.raises(UnknownBackend, match="'kata' is not offered here; offered: native, gvisor, docker"):
        POLICY.choose(ANYBODY, "kata")


@pytest.mark.parametrize("asked", ["", "gvisor"])
def test_a_key_s_backend_counts(asked: str) -> None:
    assert POLICY.choose(CAGED, asked) == "gvisor"


@pytest.mark.parametrize("asked", ["native", "docker"])
def test_a_request_cannot_leave_the_backend_of_its_key(asked: str) -> None:
    with pytest.raises(BackendDenied, match="come from gvisor, and from no other"):
        POLICY.choose(CAGED, asked)


def test_a_key_s_backend_counts_where_the_server_does_not_offer_it_any_more() -> None:
    """It is then refused by the backend, not replaced by a weaker one."""
    assert BackendPolicy().choose(CAGED) == "gvisor"


def test_a_key_whose_backend_has_no_disks_has_no_boxes() -> None:
    with pytest.raises(Unsupported, match="boxes come from native"):
        POLICY.demand_disks(CAGED)
    POLICY.demand_disks(ANYBODY)
    POLICY.demand_disks(Actor(id="one", backend="native"))
