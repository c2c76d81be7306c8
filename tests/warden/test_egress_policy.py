"""Where a sandbox may connect: what is decided on an address, and what the routes inside make of it."""

import ipaddress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stockade.warden.egress_policy import MOST_ENTRIES, NOT_PUBLIC, Network, Policy, number_of, text_of

addresses = st.integers(0, 2**32 - 1)
edges = st.sampled_from([edge for n in NOT_PUBLIC for edge in (n.first, n.first + n.size - 1)])
edges_beside = edges.flatmap(lambda e: st.sampled_from([e, max(0, e - 1), min(2**32 - 1, e + 1)]))
networks = st.builds(
    lambda address, prefix: f"{ipaddress.ip_network((address, prefix), strict=False)}",
    addresses | edges_beside,
    st.integers(1, 32),
)
lists = st.none() | st.lists(networks, max_size=4)
names = st.none() | st.lists(st.sampled_from(["example.org", "*.example.net"]), max_size=2)
policies = st.fixed_dictionaries(
    {
        "allow_cidrs": lists,
        "allow_domains": names,
        "permit_private": st.lists(networks, max_size=3),
        "refuse": st.lists(networks, max_size=3),
    }
)


@given(addresses | edges_beside)
@example(number_of("169.254.169.254"))
@example(number_of("224.0.0.1"))
@example(number_of("255.255.255.255"))
def test_what_is_not_globally_reachable_is_refused(address: int) -> None:
    known = ipaddress.IPv4Address(address)
    if not known.is_global or known.is_multicast or known.is_reserved:
        assert Policy().refusal(address, is_own=False, is_resolved=True) == "not a public address"


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.0", "11.0.0.1"]
)
def test_what_is_public_is_not(address: str) -> None:
    assert Policy().refusal(number_of(address), is_own=False, is_resolved=False) is None


@given(addresses | edges_beside)
def test_an_address_of_the_host_is_refused_in_every_network(address: int) -> None:
    wide = Policy.parse({"permit_private": ["0.0.0.0/1", "128.0.0.0/1", "0.0.0.0/0"]})
    assert wide.refusal(address, is_own=True, is_resolved=True) == "an address of the host"
    alone = Policy.parse({"permit_private": [text_of(address)]})
    assert alone.refusal(address, is_own=True, is_resolved=True) is None


@given(policies, addresses | edges_beside)
def test_a_tenants_lists_only_narrow(policy: dict[str, Any], address: int) -> None:
    operator = Policy.parse({**policy, "allow_cidrs": None, "allow_domains": None})
    if operator.refusal(address, is_own=False, is_resolved=True) is not None:
        assert Policy.parse(policy).refusal(address, is_own=False, is_resolved=True) is not None


@given(policies, addresses | edges_beside, st.booleans())
def test_no_route_keeps_back_what_is_allowed(policy: dict[str, Any], address: int, is_resolved: bool) -> None:
    parsed = Policy.parse(policy)
    is_resolved = is_resolved and bool(parsed.domains)  # with no name allowed there is no answer
    if parsed.refusal(address, is_own=False, is_resolved=is_resolved) is None:
        matching = [network for network in parsed.routes() if address in network]
        assert matching, "no route"
        longest = max(matching, key=lambda network: network.prefix)
        assert parsed.routes()[longest], f"{longest} is unreachable"


@given(networks)
def test_a_network_is_read_as_it_is_written(text: str) -> None:
    assert str(Network.parse(text)) == text
    known = ipaddress.IPv4Network(text)
    network = Network.parse(text)
    assert (network.first, network.size) == (int(known.network_address), known.num_addresses)
    assert network.first in network
    assert network.first + network.size not in network


@pytest.mark.parametrize(
    "text",
    ["", "10", "10.0.0", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/", "10.0.0.0/08x", "010.0.0.1", "0x7f.1",
     "::/0", "::ffff:10.0.0.1", "10.0.0.0/8 ", " 10.0.0.0/8", "10.0.0.0/255.0.0.0", "10.0.0.256", "１.1.1.1"],
)  # fmt: skip
def test_what_is_no_network_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"allow_cidrs: .*no IPv4 network"):
        Policy.parse({"allow_cidrs": [text]})


@pytest.mark.parametrize(
    "text",
    ["", ".", "*", "*.", "a..b", "-a.org", "a-.org", "a b.org", "é.org", "*.*.org", "a.*.org", "http://a.org",
     "a.org:80", "a" * 64 + ".org", ".".join(["a" * 60] * 5)],
)  # fmt: skip
def test_what_is_no_domain_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"allow_domains: .*no domain name"):
        Policy.parse({"allow_domains": [text]})


@pytest.mark.parametrize("policy", [{"allow_cidrs": "10.0.0.0/8"}, {"allow_domains": [1]}, {"refuse": {"a": 1}}])
def test_what_is_no_list_is_told(policy: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be a list of strings"):
        Policy.parse(policy)


def test_a_list_without_end_is_told() -> None:
    with pytest.raises(ValueError, match="at most"):
        Policy.parse({"allow_cidrs": ["1.1.1.1"] * (MOST_ENTRIES + 1)})


@pytest.mark.parametrize(
    ("name", "is_allowed"),
    [
        ("example.org", True),
        ("www.example.org", False),
        ("example.net", False),
        ("www.example.net", True),
        ("a.b.example.net", True),
        ("notexample.net", False),
        ("example.org.evil.com", False),
        ("xexample.org", False),
        ("", False),
        ("org", False),
    ],
)
def test_names_are_matched_by_their_labels(name: str, is_allowed: bool) -> None:
    policy = Policy.parse({"allow_domains": ["Example.ORG.", "*.example.net"]})
    assert policy.allows_name(name) is is_allowed
    assert Policy().allows_name(name)
