"""The OpenAPI description of the executor dialect, and requests made up from it."""

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.dialects.executor.serving import PREFIX, Executor

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.checks")
openapi_checks = pytest.importorskip("schemathesis.specs.openapi.checks")

CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]
PATHS = {
    "/run", "/run_streaming", "/write_file", "/read_file", "/delete_file", "/make_dir", "/delete_dir", "/list_dir",
    "/stat_file", "/start_process", "/list_processes", "/kill_process", "/process_logs_streaming", "/bind_port",
    "/unbind_port", "/port_status",
}  # fmt: skip
EXAMPLES = 8


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


def test_every_operation_is_described_and_keeps_to_it(platform_executor: Executor) -> None:
    """Whatever fits the description is answered with a described status and body; made-up commands do no harm, for they
    run in the sandbox.
    """
    document = platform_executor.ask("GET", "/openapi.json").json()
    described = {
        path.removeprefix(PREFIX)
        for path in document["paths"]
        if path.startswith(PREFIX) and path != f"{PREFIX}/health"
    }
    assert described == PATHS
    schema = schemathesis.openapi.from_dict(document)
    for path in sorted(PATHS):
        (method,) = document["paths"][PREFIX + path]
        for case in made_up(schema[PREFIX + path][method.upper()]):
            request = case.as_transport_kwargs(base_url=platform_executor.url)
            kept = {name: value for name, value in request.pop("headers").items() if name.lower() == "content-type"}
            if "data" in request:
                request["content"] = request.pop("data")
            request.pop("cookies", None)
            headers = {**kept, **platform_executor.headers}
            response = platform_executor.http.request(**request, headers=headers)
            case.validate_response(response, checks=CHECKS)
    platform_executor.unbound()
