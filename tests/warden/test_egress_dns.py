"""DNS messages from strangers: taken apart or refused, never more, and what is passed on is ours."""

import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade.warden import egress_dns as dns
from stockade.warden.egress_gateway import Learned
from stockade.warden.egress_resolver import name_servers

labels = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=20)
names = st.lists(labels, min_size=1, max_size=6).map(".".join)


def encoded(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label) + b"\0"


def question(name: str, kind: int = 1, *, number: int = 7, flags: int = 0x0100, options: bytes = b"") -> bytes:
    head = struct.pack(">HHHHHH", number, flags, 1, 0, 0, 1 if options else 0)
    return head + encoded(name) + struct.pack(">HH", kind, 1) + options


def options(size: int, *, data: bytes = b"", bits: int = 0) -> bytes:
    return b"\0" + struct.pack(">HHIH", 41, size, bits, len(data)) + data


def record(owner: bytes, kind: int, content: bytes, *, lifetime: int = 300) -> bytes:
    return owner + struct.pack(">HHIH", kind, 1, lifetime, len(content)) + content


def answer(query: dns.Query, *records: bytes, number: int = 7, flags: int = 0x8180) -> bytes:
    return struct.pack(">HHHHHH", number, flags, 1, len(records), 0, 0) + query.question + b"".join(records)


@given(names, st.integers(1, 65535), st.integers(0, 65535))
def test_a_question_is_read_and_asked_anew(name: str, kind: int, number: int) -> None:
    query = dns.Query.parse(question(name, kind, number=number))
    assert (query.name, query.type, query.id, query.size) == (name, kind, number, 512)
    assert query.to_bytes(99) == question(name, kind, number=99)
    own = query.answer(dns.REFUSED)
    assert dns.is_answer_to(query, number, own)
    assert own[3] & 15 == dns.REFUSED


@given(st.binary(max_size=600) | st.binary(max_size=80).map(lambda noise: question("a.example", 1) + noise))
@settings(max_examples=500)
def test_noise_is_a_question_or_refused(noise: bytes) -> None:
    try:
        query = dns.Query.parse(noise)
    except dns.Malformed:
        return
    assert dns.Query.parse(query.to_bytes(query.id)).name == query.name
    assert len(query.to_bytes(1)) <= len(noise)


@given(st.binary(max_size=300), st.integers(0, 65535))
@settings(max_examples=500)
def test_noise_in_an_answer_ends_in_addresses_or_a_refusal(noise: bytes, count: int) -> None:
    query = dns.Query.parse(question("a.example"))
    data = struct.pack(">HHHHHH", 7, 0x8180, 1, count, 0, 0) + query.question + noise
    assert dns.is_answer_to(query, 7, data)
    try:
        found = dns.addresses(query, data)
    except dns.Malformed:
        return
    assert all(0 <= address < 2**32 and 0 <= lifetime < 2**31 for address, lifetime in found)


def test_nothing_else_of_a_question_is_passed_on() -> None:
    """Options (a client's subnet, a cookie) and bits that no resolver asks for stay here."""
    query = dns.Query.parse(
        question("a.example", flags=0x0110, options=options(4096, data=b"\0\x08secret", bits=0x8001))
    )
    assert query.to_bytes(1) == question("a.example", number=1, flags=0x0110, options=options(1232, bits=0x8000))
    assert query.size == 1232


BROKEN = {
    "nothing": b"",
    "cut off": question("example.org")[:-1],
    "too much": question("example.org") + b"x",
    "an answer": question("example.org", flags=0x8180),
    "another operation": question("example.org", flags=0x2800),
    "two questions": b"\0\1\1\0\0\2\0\0\0\0\0\0" + 2 * (encoded("a.b") + b"\0\1\0\1"),
    "no question": b"\0\1\1\0\0\0\0\0\0\0\0\0",
    "with records": question("example.org", options=record(b"\0", 1, b"abcd")),
    "another class": question("example.org")[:-1] + b"\3",
    "a pointer": b"\0\1\1\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1",
    "a label of a kind that is not": b"\0\1\1\0\0\1\0\0\0\0\0\0\x41a\0\0\1\0\1",
    "a name that is too long": question(".".join(["a" * 60] * 5)),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_single_question_is_refused(data: bytes) -> None:
    with pytest.raises(dns.Malformed):
        dns.Query.parse(data)


def test_an_escaped_dot_is_no_border_between_labels() -> None:
    """Else a label `example.org` under `evil` would look like a name below `example.org`."""
    data = struct.pack(">HHHHHH", 1, 0x0100, 1, 0, 0, 0) + b"\x0bx.example\x2eo\x01b\0\0\1\0\1"
    assert dns.Query.parse(data).name == r"x\x2eexample\x2eo.b"


@pytest.mark.parametrize("kind", [0, 41, 251, 252, 253, 254, 255])
def test_transfers_and_everything_are_not_passed_on(kind: int) -> None:
    assert not dns.Query.parse(question("example.org", kind)).is_of_a_kind_to_pass_on


def test_aliases_are_followed_from_the_name_that_was_asked_for() -> None:
    query = dns.Query.parse(question("www.example.org"))
    data = answer(
        query,
        record(b"\xc0\x0c", 5, encoded("cdn.example.net"), lifetime=20),
        record(encoded("cdn.example.net"), 1, socket.inet_aton("1.2.3.4"), lifetime=30),
        record(encoded("CDN.example.NET"), 1, socket.inet_aton("1.2.3.5"), lifetime=0xFFFF_FFFF),
        record(encoded("bank.example.com"), 1, socket.inet_aton("6.6.6.6")),
        record(encoded("cdn.example.net"), 1, b"too long"),
    )
    assert dns.addresses(query, data) == [(0x01020304, 30), (0x01020305, 0)]


@pytest.mark.parametrize("owner", [b"\xc0\x21", b"\xc0\xff", b"\xff\xff", b"\xc0", b"\x3fabc", b""])
def test_a_pointer_that_does_not_lead_backwards_is_refused(owner: bytes) -> None:
    query = dns.Query.parse(question("www.example.org"))
    with pytest.raises(dns.Malformed):
        dns.addresses(query, answer(query, owner if len(owner) < 2 else record(owner, 1, b"abcd")))


def test_an_answer_is_one_to_this_question() -> None:
    query = dns.Query.parse(question("www.example.org"))
    right = answer(query)
    assert dns.is_answer_to(query, 7, right)
    assert dns.is_answer_to(query, 7, right.replace(b"www", b"WWW"))
    assert not dns.is_answer_to(query, 8, right)
    assert not dns.is_answer_to(query, 7, right.replace(b"www", b"wwx"))
    assert not dns.is_answer_to(query, 7, answer(query, flags=0x0100))
    assert not dns.is_answer_to(query, 7, right[:11])


def test_an_answer_that_does_not_fit_is_cut_and_says_so() -> None:
    query = dns.Query.parse(question("www.example.org", number=5))
    data = answer(query, *(record(b"\xc0\x0c", 1, bytes(4)) for _ in range(60)))
    assert dns.cut(query, data, most=dns.LONGEST) == b"\0\5" + data[2:]
    short = dns.cut(query, data, most=query.size)
    assert dns.is_cut(short)
    assert dns.is_answer_to(query, 5, short)
    assert len(short) <= 512


def test_name_servers_are_read_as_the_c_library_reads_them() -> None:
    text = """
    # a comment
    search example.org
    nameserver 9.9.9.9
    nameserver
    nameserver nonsense
    nameserver 1.2.3
    nameserver 2620:fe::fe trailing
    nameserver fe80::1%lo
    nameserver 8.8.8.8
    """
    assert name_servers(text) == [
        (socket.AF_INET, ("9.9.9.9", 53)),
        (socket.AF_INET6, ("2620:fe::fe", 53, 0, 0)),
        (socket.AF_INET6, ("fe80::1", 53, 0, socket.if_nametoindex("lo"))),
    ]
    assert name_servers("") == [(socket.AF_INET, ("127.0.0.1", 53))]


def test_what_was_learned_is_kept_for_its_time_and_bounded() -> None:
    learned = Learned()
    learned.add(1, 5, now=100.0)
    assert learned.knows(1, 159.0)  # at least a minute
    assert not learned.knows(1, 161.0)
    learned.add(2, 600, now=100.0)
    learned.add(2, 5, now=101.0)
    assert learned.knows(2, 690.0)  # a shorter answer takes nothing back
    for address in range(10_000):
        learned.add(address, 60, now=200.0)
    assert len(learned) <= 4096
    assert learned.knows(9_999, 210.0)
    assert not learned.knows(5, 210.0)
