"""JSON that no client sends, in every place of every body that the OpenAPI document describes: never a crash."""

import copy
import gzip
import json
import os
from collections.abc import Iterator
from typing import Any

import httpx

from tests.edge.conftest import Edge, Living
from tests.edge.test_targets import operations, refused_well

IS_LONG = bool(os.environ.get("STOCKADE_LONG_TESTS"))
Path = tuple[str | int, ...]
MARK = "@@mark@@"
VALUES = [
    "9" * 400, "1e400", "-1e400", "9" * 5000, "-" + "9" * 400, "1e308", "1e-320", "9e18", "9223372036854775808",
    "-9223372036854775809", "-1", "0", "1.5", '"\\u0000"', '"\\ud800"', '"\\ud83d\\ude00"', '"' + "a" * 100_000 + '"',
    '"\\r\\nX-Forged: y"', '"\\u202e\\u0000../../etc/passwd"', "[]", "{}", "null", "true", '""', "[" * 50 + "]" * 50,
]  # fmt: skip
WHOLE = [
    b"[" * 100_000, b'{"a":' * 50_000, b'{"a":1,"a":2}', b'{"a":NaN}', b'{"a":Infinity}', b'{"a":"\xff\xfe"}',
    b"\xef\xbb\xbf{}", "{}".encode("utf-16"), b"", b"null", b"[]", b'"a"', b"{}{}", b"{,}", b'{"a":01}',
    gzip.compress(b"0" * 10_000_000),
]  # fmt: skip


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        found: Any = document
        for part in schema["$ref"].split("/")[1:]:
            found = found[part]
        schema = found
    return schema


def example(document: dict[str, Any], schema: dict[str, Any], depth: int = 0) -> Any:
    """Something that the schema describes."""
    schema = resolved(document, schema)
    if depth > 6:
        return None
    if "example" in schema:
        return schema["example"]
    for name in ("anyOf", "oneOf", "allOf"):
        if name in schema:
            return example(document, schema[name][0], depth + 1)
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        return {name: example(document, one, depth + 1) for name, one in schema.get("properties", {}).items()}
    if kind == "array":
        return [example(document, schema.get("items", {}), depth + 1)]
    return {"string": "a", "integer": 1, "number": 1.5, "boolean": False}.get(str(kind))


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    if path:
        yield path
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], (*path, name))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from places(one, (*path, index))


def marked(value: Any, path: Path) -> str:
    """*value* as JSON with a mark in the place."""
    value = copy.deepcopy(value)
    inner = value
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = MARK
    return json.dumps(value)


def bodies(document: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Method, path and an example of each operation that takes JSON."""
    for method, path, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is not None:
            given = content.get("example") or example(document, content.get("schema", {}))
            yield method, path, given if isinstance(given, dict) else {}


def sent(edge: Edge, living: Living, method: str, path: str, body: bytes) -> httpx.Response:
    headers = {"content-type": "application/json"}
    if path.startswith("/koyeb-sandbox/"):
        headers["authorization"] = f"Bearer {living.secret}"
    target = path.replace("{session_id}", living.session_id).replace("{box_id}", living.box_id)
    target = target.replace("{id}", living.job_id)
    for name in ("{name}", "{key_id}", "{execution_id}", "{snapshot_id}", "{volume_id}"):
        target = target.replace(name, "x1")
    return edge.ask(method, target, content=body, headers=headers)


def harmless(path: str, place: Path) -> bool:
    """Whether the place can be given anything: some make things that stay, or run for long."""
    return path not in ("/v1/sessions", "/v1/boxes", "/v1/volumes") or "name" not in place


def test_no_value_in_any_place_of_any_body_is_a_crash(edge: Edge, living: Living) -> None:
    count = 0
    for method, path, given in bodies(edge.document()):
        for place in [one for one in places(given) if harmless(path, one)][:40]:
            text = marked(given, place)
            # Always the first, which has found something; of the others each place sees some.
            chosen = VALUES if IS_LONG else [VALUES[0], VALUES[1 + count % (len(VALUES) - 1)]]
            for value in chosen:
                answer = sent(edge, living, method, path, text.replace(json.dumps(MARK), value).encode())
                assert refused_well(answer), (method, path, place, value[:40], answer.status_code, answer.text[:300])
                count += 1
    assert count > 150


def test_no_body_as_a_whole_is_a_crash(edge: Edge, living: Living) -> None:
    for number, (method, path, _) in enumerate(bodies(edge.document())):
        for body in WHOLE if IS_LONG else WHOLE[number % 4 :: 4]:
            answer = sent(edge, living, method, path, body)
            assert refused_well(answer), (method, path, body[:40], answer.status_code, answer.text[:300])


def test_an_integer_of_four_hundred_digits_is_no_number_here(edge: Edge, living: Living) -> None:
    """It is beyond what floating-point numbers can hold, and reckoning with both raises OverflowError."""
    huge = "9" * 400
    for path, body in (
        ("/v1/sessions", f'{{"image":"host","resources":{{"timeoutMs":{huge}}}}}'),
        ("/v1/sessions", f'{{"image":"host","resources":{{"cpuMillis":{huge}}}}}'),
        ("/v1/sessions/{session_id}/extend", f'{{"timeoutMs":{huge}}}'),
        ("/v1/images/prune", f'{{"unused_s":{huge}}}'),
        ("/koyeb-sandbox/run", f'{{"cmd":"true","timeout":{huge}}}'),
    ):
        answer = sent(edge, living, "POST", path, body.encode())
        assert answer.status_code in (200, 400), (path, answer.text)
        assert answer.status_code == 400 or path.startswith("/koyeb-sandbox/"), (path, answer.text)
