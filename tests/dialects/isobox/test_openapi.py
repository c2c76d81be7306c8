"""The OpenAPI description of the isobox dialect, and requests made up from it."""

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.checks")
openapi_checks = pytest.importorskip("schemathesis.specs.openapi.checks")

pytestmark = pytest.mark.anyio

CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]

PROGRAMS = {
    "/execute",
    "/api/v1/execute",
    "/api/v1/execute/test-cases",
    "/api/v1/execute/test-files",
    "/api/v1/execute/test-urls",
}


async def described(isobox: Any) -> dict[str, Any]:
    schema: dict[str, Any] = (await isobox.client.get("/openapi.json")).json()
    return schema


async def test_every_route_is_described(isobox: Any) -> None:
    paths = (await described(isobox))["paths"]
    assert PROGRAMS | {"/languages", "/auth/status", "/admin/dedup/stats"} <= set(paths)
    for path in PROGRAMS:
        operation = paths[path]["post"]
        assert operation["operationId"].startswith("isobox_execute")
        assert operation["summary"]
        assert operation["tags"] == ["isobox"]
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        assert {"language", "code"} <= set(body["required"])
        assert body["properties"]["template"]["description"]
        assert {"200", "400", "401", "408", "413", "429", "500", "503"} <= set(operation["responses"])


async def test_the_examples_work(isobox: Any) -> None:
    paths = (await described(isobox))["paths"]
    for path in sorted(PROGRAMS - {"/api/v1/execute/test-urls"}):
        example = paths[path]["post"]["requestBody"]["content"]["application/json"]["example"]
        response = await isobox.client.post(path, json=example)
        assert response.status_code == 200
        assert response.json()["exit_code"] == 0


@pytest.mark.parametrize("path", sorted(PROGRAMS))
async def test_made_up_requests_get_answers_as_described(isobox: Any, path: str) -> None:
    """Whatever fits the schema (and what does not) is answered with a described status and body."""
    schema = schemathesis.openapi.from_dict(await described(isobox))
    operation = schema[path]["POST"]
    cases: list[Any] = []

    @given(case=operation.as_strategy())
    @settings(
        max_examples=10,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    def collect(case: Any) -> None:
        cases.append(case)

    collect()
    assert cases
    for case in cases:
        body = case.body if isinstance(case.body, dict | list | str | int | float | bool | None) else None
        response = await isobox.client.post(path, json=body)
        case.validate_response(response, checks=CHECKS)
