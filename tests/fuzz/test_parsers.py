"""What strangers write and we read, where no test beside the reader does it: mutations of what is in order, and bombs.

Each reader ends in what it is to give or in the refusal that it documents; a small input costs little memory.
"""

import asyncio
import base64
import gzip
import io
import json
import re
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stockade.accounts import user_administration
from stockade.dialects.executor import events as executor_events
from stockade.engine.box_manifests import parsed_manifest
from stockade.engine.box_parcels import BadParcel
from stockade.engine.diversion_http import host_of
from stockade.engine.diversions import _hello
from stockade.errors import Invalid, StockadeError
from stockade.store import job_lists, sandboxes
from stockade.warden import tar_reader
from stockade.warden.agent_channel import AgentError
from stockade.wire import tokens
from stockade.wire.clients import normal_address
from stockade.wire.events import frame
from stockade.wire.proxy_headers import Target, request_headers, response_headers
from tests.fuzz.messages import EDGES, fast

FAST = fast(100)
DEEP = "[" * 50_000 + "]" * 50_000
MEMORY_BYTES = 24 << 20
"""What reading a small input may take at most."""
json_values = st.sampled_from(EDGES) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def peak(work: Callable[[], object]) -> int:
    """Bytes that *work* held at most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# ── server-sent events ──────────────────────────────────────────────────────────────────────────────────────────────


def browsers_events(body: bytes) -> list[tuple[str, str]]:
    """As the standard reads a stream: 9.2.6 of https://html.spec.whatwg.org/multipage/server-sent-events.html."""
    events, name, data = [], "message", list[str]()
    for line in re.split(r"\r\n|\r|\n", body.decode()):
        if not line:
            if data:
                events.append((name, "\n".join(data)))
            name, data = "message", []
            continue
        member, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if member == "event":
            name = value
        elif member == "data":
            data.append(value)
    return events


nasty = st.text(st.sampled_from('\r\n\u2028\u2029\x85\x0b\x0c:\0 "\\{}aé😀'), max_size=30) | st.text(max_size=30)


@given(st.lists(st.dictionaries(nasty, nasty, max_size=3), max_size=4))
@FAST
def test_no_text_makes_an_event_of_its_own(told: list[dict[str, str]]) -> None:
    body = b"".join(frame("output", one, id="7") for one in told)
    assert [(name, json.loads(data)) for name, data in browsers_events(body)] == [("output", one) for one in told]


@given(st.binary(max_size=60) | nasty.map(lambda text: text.encode("utf-8", "surrogatepass")), st.booleans())
@FAST
def test_no_output_makes_an_event_of_its_own(output: bytes, is_stderr: bool) -> None:
    lines = output.split(b"\n")
    for body in (
        executor_events.output_events(output, is_stderr=is_stderr),
        executor_events.log_events(output, is_stderr=is_stderr, at_ns=1),
    ):
        found = browsers_events(body)
        assert len(found) == len(lines)
        assert {json.loads(data)["stream"] for _, data in found} == {"stderr" if is_stderr else "stdout"}


# ── places in lists, tokens, announcements ──────────────────────────────────────────────────────────────────────────


def encoded(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode().rstrip("=")


moments = st.sampled_from(
    [
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "2026-02-03T04:05:06Z",
        "2026-02-03",
        "x",
        "20260203T0405Z",
    ]
)
cursors = st.one_of(
    st.text(max_size=40),
    st.binary(max_size=40).map(lambda data: base64.urlsafe_b64encode(data).decode()),
    json_values.map(encoded),
    st.tuples(moments | json_values, json_values).map(encoded),
    st.tuples(moments, st.text(max_size=5)).map(" ".join).map(encoded),
)


@pytest.mark.parametrize("read", [sandboxes._read_cursor, job_lists._read_cursor, user_administration._parse])
def test_a_cursor_is_one_of_ours_or_refused(read: Callable[[str], tuple[datetime, object]]) -> None:
    @given(cursors)
    @example(encoded(DEEP))
    @example(encoded(["2026-02-03T04:05:06Z", "\ud800"]))
    @example(encoded(["0001-01-01T00:00:00+23:59", 1]))
    @FAST
    def check(cursor: str) -> None:
        try:
            moment, other = read(cursor)
        except Invalid:
            return
        assert moment.utcoffset() is not None
        assert moment.utcoffset().total_seconds() == 0  # type: ignore[union-attr]
        str(other).encode()

    check()


jwts = st.one_of(
    st.text(max_size=60),
    st.tuples(json_values.map(encoded), json_values.map(encoded), st.just("AA")).map(".".join),
    st.tuples(
        st.fixed_dictionaries(
            {"alg": st.sampled_from(["RS256", "HS256", "none", "", 5])}, optional={"kid": json_values}
        ).map(encoded),
        json_values.map(encoded),
        st.text(max_size=10),
    ).map(".".join),
)


@given(jwts)
@example(f"{encoded(DEEP)}.{encoded({})}.AA")
@example(f"{encoded({'alg': 'RS256', 'kid': 'k', 'crit': ['x']})}.{encoded(DEEP)}.AA")
@example("\ud800.\ud800.\ud800")
@FAST
def test_a_token_is_one_of_the_issuers_or_refused(token: str) -> None:
    verifier = tokens.JwtVerifier(issuer="https://i", audience="a", keys_url="https://i/keys", cache_ttl_s=60.0)
    verifier._keys, verifier._fetched = {}, verifier.clock()
    with pytest.raises(StockadeError):
        asyncio.run(verifier.verify(token))


class Line:
    """A connection that says one thing."""

    def __init__(self, data: bytes) -> None:
        self._left = [data]
        self.rest = b""

    async def read(self) -> bytes:
        return self._left.pop() if self._left else b""

    def give_back(self, data: bytes) -> None:
        self.rest = data


@given(st.binary(max_size=80) | json_values.map(lambda value: json.dumps(value).encode() + b"\nGET / HTTP/1.1\r\n\r\n"))
@example(b"[" * 1900 + b"\n")
@FAST
def test_who_announces_nothing_is_not_the_egress_process(data: bytes) -> None:
    stream: Any = Line(data)
    try:
        assert isinstance(asyncio.run(_hello(stream)), dict)
    except ConnectionError:
        pass


# ── headers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(
    st.binary(max_size=40)
    | st.sampled_from([b"a:99999", b"a:" + b"9" * 5000, b"A.:80", b"[::1]:80", b"a\r\nb", b"a@b", b""])
)
@FAST
def test_a_host_is_a_name_and_a_port_or_none(value: bytes) -> None:
    found = host_of(value)
    if found is not None:
        name, port = found
        assert re.fullmatch(r"[a-z0-9_.-]*", name)
        assert port is None or 0 <= port <= 99999
        assert name.encode() in value.lower()


names = st.sampled_from(
    [b"host", b"connection", b"cookie", b"set-cookie", b"location", b"authorization", b"transfer-encoding", b"upgrade",
     b"te", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"forwarded", b"keep-alive", b"proxy-connection",
     b"x-a", b"content-length", b"content-security-policy", b"trailer"]
)  # fmt: skip
values = st.binary(max_size=30) | st.sampled_from(
    [b"x-a, Host, cookie", b"close", b"keep-alive,transfer-encoding", b"//evil/", b"/x", b"http://h/x",
     b"a=1; Domain=evil", b"a\r\nset-cookie: b", b"a\nb", b"a\0b"]
)  # fmt: skip
HOP_BY_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}


@given(st.lists(st.tuples(names, values), max_size=8), st.booleans())
@FAST
def test_headers_pass_whole_or_not_at_all(headers: list[tuple[bytes, bytes]], by_path: bool) -> None:
    """None that is for this hop only, none that another is hidden in, and always exactly one host."""
    target = Target(sandbox_id="s", port=80, path=b"/", prefix=b"/p/s/80" if by_path else b"")
    to_inside = request_headers(headers, target, client="203.0.113.9", scheme="https")
    named = [name for name, _ in to_inside]
    assert not HOP_BY_HOP.intersection(named)
    assert named.count(b"x-forwarded-for") == 1
    assert dict(to_inside)[b"x-forwarded-for"] == b"203.0.113.9"
    assert (b"authorization" in named) <= (not by_path)
    assert b"host" in named
    outside = response_headers(headers, target, status=200, host=b"h")
    assert not HOP_BY_HOP.intersection(name for name, _ in outside)
    assert not any(control in value for _, value in outside for control in (b"\r", b"\n", b"\0"))
    if by_path:
        assert not {b"set-cookie"}.intersection(name for name, _ in outside)


@given(st.text(max_size=50) | st.sampled_from(["", "%", "1.2.3.4%", "[::1]", "fe80::1%" + "e" * 99]))
@FAST
def test_an_address_of_whatever_form_is_counted(host: str) -> None:
    """What cannot be an address is one like all others of that kind: a new text is not a new caller."""
    assert len(normal_address(host)) <= 64


def test_an_address_is_counted_once_however_it_is_written() -> None:
    for one, other in (("::ffff:1.2.3.4", "1.2.3.4"), ("fe80::1%eth0", "fe80::1"), ("2001:db8::1", "2001:db8:0::ffff")):
        assert normal_address(one) == normal_address(other)


# ── exports of boxes ────────────────────────────────────────────────────────────────────────────────────────────────

BOX: dict[str, Any] = {
    "entrypoint": [], "command": ["sh"], "env": {"A": "b"}, "cwd": "/", "user": "root", "terminal": False,
    "limits": {"cpus": 1.0, "memory_bytes": 1 << 28, "processes": 64, "disk_bytes": 1 << 30},
    "network": {"mode": "none", "allow_cidrs": None, "allow_domains": None}, "drop_capabilities": [], "labels": {},
    "auto_stop_s": 60.0, "auto_delete_s": None, "auto_resume": True,
}  # fmt: skip


@given(st.sampled_from([*BOX, "image", "box"]), json_values)
@FAST
def test_a_manifest_of_a_box_is_read_or_refused(member: str, value: Any) -> None:
    document: dict[str, Any] = {"image": {"reference": "a", "digest": "sha256:" + "0" * 64}, "box": dict(BOX)}
    place = document if member in document else document["box"]
    place[member] = value
    try:
        parsed_manifest(document, name="b", dialect="boxlite")
    except (BadParcel, Invalid):
        pass


# ── archives ────────────────────────────────────────────────────────────────────────────────────────────────────────


def pieces(data: bytes, size: int = 700) -> Iterator[memoryview]:
    for at in range(0, len(data), size):
        yield memoryview(data)[at : at + size]


def ours(data: bytes) -> list[tuple[bytes, bytes, int, bytes]]:
    source = tar_reader.Source(pieces(data))
    found = []
    for member in tar_reader.members(source):
        found.append((member.name.rstrip(b"/"), member.kind, member.stored, member.link))
        member.skip(source)
    source.finish()
    return found


def theirs(data: bytes) -> list[tuple[bytes, bytes, int, bytes]]:
    def raw(text: str) -> bytes:
        return text.encode("utf-8", "surrogateescape")

    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [
            (raw(one.name), one.type, one.size if one.isreg() else 0, raw(one.linkname)) for one in archive.getmembers()
        ]


names_inside = st.text(st.characters(exclude_characters="\0/", exclude_categories=("Cs",)), min_size=1, max_size=150)
entries = st.tuples(
    names_inside,
    st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]),
    st.binary(max_size=1500),
    names_inside,
)


def archived(told: list[tuple[str, bytes, bytes, str]], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8") as archive:
        for name, kind, content, link in told:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(content)
            elif kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = link
            archive.addfile(info, io.BytesIO(content) if kind == tarfile.REGTYPE else None)
    return buffer.getvalue()


@given(st.lists(entries, max_size=4), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), st.booleans())
@FAST
def test_an_archive_is_read_as_the_standard_library_reads_it(
    told: list[tuple[str, bytes, bytes, str]], form: int, packed: bool
) -> None:
    data = archived(told, form)
    assert ours(gzip.compress(data, 1) if packed else data) == [
        (name.rstrip(b"/"), *rest)
        for name, *rest in theirs(data)  # what is left of a directory's mark
    ]


@given(
    st.lists(entries, min_size=1, max_size=3),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=12)), max_size=4),
    st.booleans(),
    st.booleans(),
)
@FAST
def test_a_changed_archive_is_read_or_refused(
    told: list[tuple[str, bytes, bytes, str]], form: int, changes: list[tuple[int, bytes]], mend: bool, packed: bool
) -> None:
    """Also where the checksums of its headers are set right after it, so that the reader goes on into it."""
    data = bytearray(archived(told, form))
    for at, what in changes:
        at %= len(data)
        data[at : at + len(what)] = what
    if mend:
        for at in range(0, len(data) - 511, 512):
            if any(data[at : at + 512]):
                data[at + 148 : at + 156] = b" " * 8
                data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    final = gzip.compress(bytes(data), 1) if packed else bytes(data)

    def read() -> None:
        try:
            ours(final)
        except AgentError:
            pass

    assert peak(read) < MEMORY_BYTES


def bomb(size: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()


@pytest.mark.parametrize(
    "inside",
    [b"", archived([("a", tarfile.REGTYPE, b"", "")], tarfile.PAX_FORMAT)[:1024]],
    ids=["zeros", "after the end"],
)
def test_what_unpacks_to_much_is_held_nowhere(inside: bytes) -> None:
    """128 MiB of zeros in 130 kB: read in pieces, and refused where they are no padding any more."""
    data = gzip.compress(inside) + bomb(128 << 20)

    def read() -> None:
        try:
            ours(data)
        except AgentError:
            pass

    assert peak(read) < MEMORY_BYTES


def test_a_pax_header_says_no_more_than_it_holds() -> None:
    """Records that claim lengths, numbers of pieces and sizes beyond all bounds."""
    for records in (
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 19, "GNU.sparse.name": "x"},
        {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": "9",
         "GNU.sparse.map": ",".join(["0,1"] * 60_000)},
        {"size": "9" * 19}, {"size": "-1"}, {"mtime": "9" * 19}, {"mtime": "1e9"}, {"path": "a" * 900_000},
        {"uid": "x"},
    ):  # fmt: skip
        info = tarfile.TarInfo("a")
        info.pax_headers = records
        data = info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)

        def read(data: bytes = data) -> None:
            try:
                ours(data)
            except AgentError:
                pass

        assert peak(read) < MEMORY_BYTES, records
