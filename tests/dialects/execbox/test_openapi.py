"""The OpenAPI description of the execbox dialect, and requests made up from it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.dialects.execbox.test_accounts import accounting

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
OPERATIONS = {
    "createSession", "listSessions", "getSession", "stopSession", "killSession", "attachSession", "execSession",
    "extendSession", "uploadFile", "downloadFile", "deleteFile", "getSessionUrl", "getSessionLogs", "getSessionStats",
    "getAccount", "getUsage", "getEnhancedUsage", "exportUsage", "getAccountLimits", "updateAccountLimits",
    "listAPIKeys", "createAPIKey", "getAPIKey", "updateAPIKey", "deleteAPIKey", "rotateAPIKey",
    "joinWaitlist", "createQuotaRequest",
}  # fmt: skip
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


async def test_every_operation_is_described_and_keeps_to_it(tmp_path: Path, anyio_backend: str) -> None:
    """Whatever fits the description is answered with a described status and body."""
    async with accounting(tmp_path, waitlist=True) as (served, _, _):
        session = await served.create(served.client.headers["authorization"].removeprefix("Bearer "))
        document = (await served.client.get("/openapi.json")).json()
        schema = schemathesis.openapi.from_dict(document)
        seen = set()
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if operation["operationId"] not in OPERATIONS:
                    continue
                seen.add(operation["operationId"])
                for case in made_up(schema[path][method.upper()]):
                    if "session_id" in (case.path_parameters or {}):
                        case.path_parameters["session_id"] = session
                    request = case.as_transport_kwargs(base_url="")
                    request["headers"] = {
                        name: value for name, value in request["headers"].items() if name.lower() == "content-type"
                    }
                    if "data" in request:
                        request["content"] = request.pop("data")
                    request.pop("cookies", None)
                    (request.get("params") or {}).pop("follow", None)  # it would be to the end of the session
                    response = await served.client.request(**request)
                    case.validate_response(response, checks=CHECKS)
        assert seen == OPERATIONS
