"""DNS messages, as far as one has to understand them to pass them on (RFC 1035, RFC 6891).

A tenant's query is taken apart and made anew, so that nothing else of it reaches the host's name server; of an answer
the names and addresses are read. Both are written by strangers: every length is checked, compression pointers may only
lead backwards.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = [
    "LONGEST",
    "NAME_ERROR",
    "NOT_IMPLEMENTED",
    "REFUSED",
    "SERVER_FAILURE",
    "TYPES_OF_SERVICE",
    "TYPE_A",
    "TYPE_AAAA",
    "Malformed",
    "Query",
    "addresses",
    "cut",
    "is_answer_to",
    "is_cut",
]

TYPE_A, TYPE_AAAA = 1, 28
TYPES_OF_SERVICE = (64, 65)
"""SVCB and HTTPS (RFC 9460): they carry addresses, too, and keys by which a name is hidden from whoever is between."""
_TYPE_CNAME, _TYPE_OPT = 5, 41
_CLASS_IN = 1
_TRANSFERS_AND_ANY = range(249, 256)  # TKEY, TSIG, IXFR, AXFR, MAILB, MAILA, ANY
SERVER_FAILURE, NAME_ERROR, NOT_IMPLEMENTED, REFUSED = 2, 3, 4, 5
LONGEST = 65535
_LEAST_SIZE, _MOST_SIZE = 512, 1232  # a datagram's; the latter is never fragmented
_MOST_NAME, _MOST_LABEL, _MOST_POINTERS = 255, 63, 32
_MOST_RECORDS = 512
_HEADER = struct.Struct(">HHHHHH")
_RESPONSE, _CUT, _WANT_RECURSION, _CAN_RECURSE, _CHECKED, _UNCHECKED = 0x8000, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
_OPCODE = 0x7800
_DNSSEC_OK = 0x8000


class Malformed(ValueError):
    """Not a DNS message, or none that we pass on."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """A question, and what the answer must look like."""

    id: int
    question: bytes
    """Name, type and class as they were sent: an answer repeats them to the letter."""
    name: str
    """In lower case, without the last dot; bytes that are not ASCII as `\\xNN`."""
    type: int
    flags: int
    size: int
    """Longest datagram that the asker takes."""
    is_extended: bool
    """It speaks EDNS."""
    wants_signatures: bool = False

    @classmethod
    def parse(cls, data: bytes) -> "Query":
        """Raises Malformed."""
        if len(data) < _HEADER.size:
            raise Malformed("too short")
        number, flags, questions, answers, authorities, others = _HEADER.unpack_from(data)
        if flags & (_RESPONSE | _OPCODE) or questions != 1 or answers or authorities or others > 1:
            raise Malformed("not a single question")
        name, end = _read_name(data, _HEADER.size, may_point=False)
        kind, category = _unpack(">HH", data, end)
        end += 4
        size, is_extended, wants_signatures = _LEAST_SIZE, False, False
        question = data[_HEADER.size : end]
        if others:
            owner, position = _read_name(data, end, may_point=False)
            extra, size, options, length = _unpack(">HHIH", data, position)
            end = position + 10 + length
            if owner or extra != _TYPE_OPT:
                raise Malformed("an additional record that is no OPT")
            is_extended, wants_signatures = True, bool(options & _DNSSEC_OK)
            size = min(max(size, _LEAST_SIZE), _MOST_SIZE)
        if end != len(data):
            raise Malformed("more or less than a question")
        if category != _CLASS_IN:
            raise Malformed("not of the internet's class")
        return cls(
            id=number,
            question=question,
            name=name,
            type=kind,
            flags=flags & (_WANT_RECURSION | _CHECKED | _UNCHECKED),
            size=size,
            is_extended=is_extended,
            wants_signatures=wants_signatures,
        )

    @property
    def is_of_a_kind_to_pass_on(self) -> bool:
        """Not a transfer of a whole zone, and not everything there is."""
        return self.type not in _TRANSFERS_AND_ANY and self.type not in (0, _TYPE_OPT)

    def to_bytes(self, number: int) -> bytes:
        """The query under another id, for a name server."""
        head = _HEADER.pack(number, self.flags | _WANT_RECURSION, 1, 0, 0, int(self.is_extended))
        return head + self.question + (self._options() if self.is_extended else b"")

    def answer(self, code: int = 0) -> bytes:
        """An answer of our own without records."""
        flags = _RESPONSE | _CAN_RECURSE | self.flags | code
        head = _HEADER.pack(self.id, flags, 1, 0, 0, int(self.is_extended))
        return head + self.question + (self._options() if self.is_extended else b"")

    def _options(self) -> bytes:
        return b"\0" + struct.pack(">HHIH", _TYPE_OPT, _MOST_SIZE, _DNSSEC_OK if self.wants_signatures else 0, 0)


def is_answer_to(query: Query, number: int, data: bytes) -> bool:
    """Whether *data* answers the query that was sent under the id *number*."""
    if len(data) < _HEADER.size or len(data) > LONGEST:
        return False
    got, flags, questions, *_ = _HEADER.unpack_from(data)
    if got != number or not flags & _RESPONSE or flags & _OPCODE or questions != 1:
        return False
    end = _HEADER.size + len(query.question)
    return data[_HEADER.size : end].lower() == query.question.lower()


def is_cut(data: bytes) -> bool:
    """Whether the name server had more to say than fits a datagram."""
    return bool(_HEADER.unpack_from(data)[1] & _CUT)


def cut(query: Query, data: bytes, *, most: int) -> bytes:
    """An answer as it goes to the asker: under its id; one of more than *most* bytes is cut, and says so."""
    if len(data) <= most:
        return query.id.to_bytes(2, "big") + data[2:]
    flags = _HEADER.unpack_from(data)[1] | _CUT
    return _HEADER.pack(query.id, flags, 1, 0, 0, 0) + query.question


def addresses(query: Query, data: bytes) -> list[tuple[int, int]]:
    """The IPv4 addresses, each with its time to live in seconds, that an answer gives for the name that was asked for.

    Aliases are followed from that name on; records of other names count for nothing.

    Raises:
        Malformed: not an answer.
    """
    _, _, _, count, _, _ = _HEADER.unpack_from(data)
    names = {query.name}
    found = []
    for name, kind, lifetime, start, length in _records(data, _HEADER.size + len(query.question), count):
        if name not in names:
            continue
        if kind == _TYPE_CNAME:
            names.add(_read_name(data, start)[0])
        elif kind == TYPE_A and length == 4:
            found.append((int.from_bytes(data[start : start + 4], "big"), lifetime))
    return found


def _records(data: bytes, position: int, count: int) -> Iterator[tuple[str, int, int, int, int]]:
    """Owner, type, time to live, and where the content is, of each record."""
    if count > _MOST_RECORDS:
        raise Malformed("too many records")
    for _ in range(count):
        name, position = _read_name(data, position)
        kind, category, lifetime, length = _unpack(">HHIH", data, position)
        position += 10
        if position + length > len(data):
            raise Malformed("a record is cut off")
        if category == _CLASS_IN:
            yield name, kind, 0 if lifetime & 0x8000_0000 else lifetime, position, length
        position += length


def _unpack(layout: str, data: bytes, position: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(layout, data, position)
    except struct.error as error:
        raise Malformed("cut off") from error


def _read_name(data: bytes, position: int, *, may_point: bool = True) -> tuple[str, int]:
    """The name that begins at *position*, and where what follows it begins."""
    labels: list[str] = []
    length, pointers, after, earliest = 0, 0, -1, position
    while True:
        if position >= len(data):
            raise Malformed("a name is cut off")
        size = data[position]
        if size == 0:
            break
        if size & 0xC0 == 0xC0:
            target = _unpack(">H", data, position)[0] & 0x3FFF
            pointers += 1
            # Backwards only, so that it ends.
            if not may_point or target >= earliest or pointers > _MOST_POINTERS:
                raise Malformed("a pointer that leads nowhere")
            if after < 0:
                after = position + 2
            position = earliest = target
            continue
        label = data[position + 1 : position + 1 + size]
        length += size + 1
        if size > _MOST_LABEL or len(label) < size or length >= _MOST_NAME:
            raise Malformed("a name or label is too long")
        labels.append(_readable(label))
        position += 1 + size
    return ".".join(labels), after if after >= 0 else position + 1


def _readable(label: bytes) -> str:
    """A label as text, in lower case; a dot within it is escaped, so that it does not look like two."""
    if label.isalnum() or all(0x20 < byte < 0x7F and byte not in b".\\" for byte in label):
        return label.decode("ascii").lower()
    return "".join(chr(b) if 0x20 < b < 0x7F and b not in b".\\" else f"\\x{b:02x}" for b in label.lower())
