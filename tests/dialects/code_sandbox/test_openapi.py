"""The OpenAPI description of the code-sandbox dialect, and requests made up from it."""

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.dialects.code_sandbox.serving import CodeSandbox

schemathesis = pytest.importorskip("schemathesis")
openapi_checks = pytest.importorskip("schemathesis.specs.openapi.checks")

CHECKS = [
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]
OPERATIONS = {
    ("POST", "/v1/execute"), ("GET", "/v1/execute/{id}"),
    ("POST", "/v1/jobs"), ("GET", "/v1/jobs"), ("POST", "/v1/jobs/batch"), ("GET", "/v1/jobs/queue"),
    ("GET", "/v1/jobs/webhook-secret"),
    ("GET", "/v1/jobs/{id}"), ("DELETE", "/v1/jobs/{id}"), ("POST", "/v1/jobs/{id}/cancel"),
    ("POST", "/v1/jobs/{id}/retry"), ("GET", "/v1/jobs/{id}/events"),
}  # fmt: skip
ACCOUNTS = {("POST", "/v1/auth/register"), ("POST", "/v1/auth/login"), ("GET", "/v1/auth/validate")}
EXAMPLES = 12


def made_up(operation: Any) -> list[Any]:
    """Requests that fit the description."""
    cases: list[Any] = []

    @given(case=operation.as_strategy())
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


def test_every_operation_is_described_and_keeps_to_it(sandbox: CodeSandbox) -> None:
    """Whatever fits the description is answered with a described status and body, and nothing breaks."""
    document = sandbox.ask("GET", "/openapi.json").json()
    described = {(method.upper(), path) for path, found in document["paths"].items() for method in found}
    assert {one for one in described if one[1].startswith("/v1/")} == OPERATIONS | ACCOUNTS
    schema = schemathesis.openapi.from_dict(document)
    for method, path in sorted(OPERATIONS):
        for case in made_up(schema[path][method]):
            request = case.as_transport_kwargs(base_url=sandbox.url)
            kept = {name: value for name, value in request.pop("headers").items() if name.lower() == "content-type"}
            if "data" in request:
                request["content"] = request.pop("data")
            request.pop("cookies", None)
            response = sandbox.http.request(**request, headers=kept)
            assert response.status_code < 500 or response.status_code == 501, (request, response.text)
            case.validate_response(response, checks=CHECKS)


def test_a_job_s_own_operations_keep_to_the_description(sandbox: CodeSandbox) -> None:
    """Made-up ids name no job: so this is told with a real one."""
    document = sandbox.ask("GET", "/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    job = sandbox.own_ended(sandbox.job(labels={"a": "b"})["id"])
    for method, path in [
        ("GET", "/v1/execute/{id}"),
        ("GET", "/v1/jobs/{id}"),
        ("POST", "/v1/jobs/{id}/cancel"),
        ("POST", "/v1/jobs/{id}/retry"),
        ("DELETE", "/v1/jobs/{id}"),
    ]:
        response = sandbox.ask(method, path.replace("{id}", job["id"]))
        assert response.status_code in (200, 202, 204), response.text
        schema[path][method].validate_response(response)
