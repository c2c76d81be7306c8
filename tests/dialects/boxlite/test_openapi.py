"""The OpenAPI description of the boxlite dialect, and requests made up from it."""

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.dialects.boxlite.routing import serving

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
OURS = "boxlite_"
TAR = "application/x-tar"
"""Nobody can make up such a body."""
NOT_HERE = {"attach", "exec", "executions", "files"}
"""These need a box with processes."""
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


async def test_every_operation_is_described_and_keeps_to_it(anyio_backend: str) -> None:
    """Whatever fits the description is answered with a described status and body."""
    async with serving() as served:
        document = (await served.client.get("/openapi.json")).json()
        schema = schemathesis.openapi.from_dict(document)
        seen = set()
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if not operation["operationId"].startswith(OURS) or NOT_HERE & set(path.split("/")):
                    continue
                if TAR in operation.get("requestBody", {}).get("content", {}):
                    continue
                seen.add(operation["operationId"].removeprefix(OURS))
                box = (await served.create())["box_id"]
                for case in made_up(schema[path][method.upper()]):
                    if "box_id" in (case.path_parameters or {}):
                        case.path_parameters["box_id"] = box
                    request = case.as_transport_kwargs(base_url="")
                    request["headers"] = {
                        name: value for name, value in request["headers"].items() if name.lower() == "content-type"
                    }
                    if "data" in request and not isinstance(request["data"], dict):
                        request["content"] = request.pop("data")
                    request.pop("cookies", None)
                    response = await served.client.request(**request)
                    case.validate_response(response, checks=CHECKS)
        assert {"config", "token", "me", "create_box", "restore_snapshot", "import_box", "open_tunnel"} <= seen
        assert len(seen) >= 40
