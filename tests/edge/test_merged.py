"""Requests made up from the OpenAPI document of the whole server: all dialects on one port, and its own routes.

Each dialect's own test makes up requests to it alone, in a process, with a key that is good. Here the union is asked as
it is deployed: also without a key and with a wrong one, for things that are there, and with what fits no description.
"""

import os
from collections import Counter
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.edge.conftest import KEY, Edge, Living
from tests.edge.test_targets import operations

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

IS_LONG = bool(os.environ.get("STOCKADE_LONG_TESTS"))
EXAMPLES = 25 if IS_LONG else 1
CHECKS = [checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance]
ENDLESS = {"follow", "wait"}
STREAMS = {"attachSession", "execSession", "boxlite_open_tunnel", "boxlite_attach"}
"""These are WebSockets, or last."""
TAR = "application/x-tar"
"""Nobody can make up such a body."""
MADE = {"session_id": "session_id", "box_id": "box_id", "id": "job_id"}
"""Parameters of paths, and what of `Living` they name."""


def made_up(operation: Any, *, fits: bool) -> list[Any]:
    """Requests that fit the description, or do not."""
    cases: list[Any] = []
    mode = schemathesis.GenerationMode.POSITIVE if fits else schemathesis.GenerationMode.NEGATIVE

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    def collect(case: Any) -> None:
        cases.append(case)

    collect()
    return cases


def sent(edge: Edge, case: Any, headers: dict[str, str]) -> httpx.Response:
    request = case.as_transport_kwargs(base_url=edge.url)
    kinds = {name: value for name, value in request.pop("headers").items() if name.lower() == "content-type"}
    if "data" in request and not isinstance(request["data"], dict):
        request["content"] = request.pop("data")
    request.pop("cookies", None)
    for name in ENDLESS:
        (request.get("params") or {}).pop(name, None)
    return edge.http.request(**request, headers={**kinds, **headers})


def may_be_made_up(method: str, path: str, operation: dict[str, Any]) -> bool:
    """Not what only a program of ours could say, and not what would end what other tests use."""
    if TAR in operation.get("requestBody", {}).get("content", {}):
        return False
    if operation.get("operationId") in STREAMS or path.endswith(("/attach", "/tunnel", "/events")):
        return False
    return not (method == "DELETE" and path in ("/v1/sessions/{session_id}", "/v1/boxes/{box_id}"))


def test_the_whole_document_is_kept_to(edge: Edge, living: Living) -> None:
    document = edge.document()
    schema = schemathesis.openapi.from_dict(document)
    keys = {
        "good": {"authorization": f"Bearer {KEY}", "x-api-key": KEY},
        "wrong": {"authorization": "Bearer sk_wrong", "x-api-key": "sk_wrong"},
        "none": {},
    }
    statuses: Counter[int] = Counter()
    failures: list[str] = []
    for method, path, operation in operations(document):
        if not operation or not may_be_made_up(method, path, operation):
            continue
        for case in made_up(schema[path][method], fits=True):
            for name, member in MADE.items():
                if name in (case.path_parameters or {}):
                    case.path_parameters[name] = getattr(living, member)
            for who, headers in keys.items():
                if path.startswith("/koyeb-sandbox/"):
                    if who != "good":
                        continue  # wrong secrets are counted, and soon refused for a while
                    headers = {"authorization": f"Bearer {living.secret}"}
                if who != "good" and path.endswith(("/kill", "/stop")):
                    continue
                answer = sent(edge, case, headers)
                assert answer.status_code < 500 or answer.status_code in (501, 503), (method, path, who, answer.text)
                try:  # no content, no type of it
                    case.validate_response(answer, checks=CHECKS[:1] if method == "HEAD" else CHECKS)
                except schemathesis.errors.SchemathesisError as error:
                    failures.append(f"{who}: {error}")
                except BaseExceptionGroup as group:
                    failures.append(f"{who}: {group.message}")
                statuses[answer.status_code] += 1
    assert not failures, "\n".join(failures)
    assert statuses.total() > 250
    assert statuses[200] > 20
    assert statuses[401] > 10


@pytest.mark.skipif(not IS_LONG, reason="STOCKADE_LONG_TESTS is not set")
def test_what_fits_no_description_breaks_nothing(edge: Edge, living: Living) -> None:
    document = edge.document()
    schema = schemathesis.openapi.from_dict(document)
    for method, path, operation in operations(document):
        if not operation or not may_be_made_up(method, path, operation):
            continue
        try:
            cases = made_up(schema[path][method], fits=False)
        except BaseException as error:
            if "negative" in str(error).lower() or "Unsatisfiable" in type(error).__name__:
                continue  # everything fits
            raise
        secret = living.secret if path.startswith("/koyeb-sandbox/") else KEY
        for case in cases:
            answer = sent(edge, case, {"authorization": f"Bearer {secret}", "x-api-key": KEY})
            assert answer.status_code < 500 or answer.status_code in (501, 503), (method, path, answer.text)
