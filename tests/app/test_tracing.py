"""Each request has an id, in its answer and in every log line; and spans go where the operator wants them."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import structlog
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider

from stockade.app.tracing import tracing
from stockade.config import TracingConfig
from tests.app.posting import posted_to
from tests.app.serving import serving

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
RUN = {"language": "python", "code": "print('not in any span')"}


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """An address that takes spans, and those that came."""
    came: list[ExportTraceServiceRequest] = []

    with posted_to(lambda _, body: came.append(ExportTraceServiceRequest.FromString(body)), status=200) as address:
        yield address, came


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("tracing")) as server:
        yield server.url


def test_a_request_keeps_the_id_that_its_sender_gave_it(url: str) -> None:
    answer = httpx.get(f"{url}/health", headers={"X-Request-Id": "mine-1.2_3"}, trust_env=False)
    assert answer.headers["x-request-id"] == "mine-1.2_3"


@pytest.mark.parametrize("path", ["/execute", "/api/v1/execute", "/v1/execute", "/nowhere"])
@pytest.mark.parametrize("given", [{}, {"X-Request-Id": "mine"}, {"X-Request-Id": "two words"}])
def test_every_dialect_answers_with_the_one_id_that_is_in_the_log(url: str, path: str, given: dict[str, str]) -> None:
    answer = httpx.post(f"{url}{path}", content=b"{", headers=given, trust_env=False)
    (id,) = answer.headers.get_list("x-request-id")
    assert id == given.get("X-Request-Id") or len(bytes.fromhex(id)) == 16


@pytest.mark.parametrize("given", ["", "two words", "x" * 65, 'quote"'])
def test_a_request_without_a_good_id_gets_one(url: str, given: str) -> None:
    first, second = (httpx.get(f"{url}/health", headers={"X-Request-Id": given}, trust_env=False) for _ in range(2))
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    assert len(bytes.fromhex(first.headers["x-request-id"])) == 16


def test_a_collector_that_does_not_answer_holds_up_nobodys_end(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[TracerProvider] = []
    monkeypatch.setattr(trace, "set_tracer_provider", made.append)  # else it would be that of all other tests
    monkeypatch.setattr("stockade.app.tracing.LAST_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, structlog.testing.capture_logs() as said:
        config = TracingConfig(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=5)
        with tracing(config):
            made[0].get_tracer("test").start_span("lost").end()
    assert [one["event"] for one in said] == ["tracing.spans_not_sent"]


def test_spans_go_to_the_collector_and_belong_to_the_callers_trace(tmp_path: Path) -> None:
    with (
        collector() as (address, came),
        serving(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=address, OTEL_SERVICE_NAME="judge") as server,
    ):
        answer = httpx.post(
            f"{server.url}/api/v1/execute", json=RUN, headers={"traceparent": PARENT}, trust_env=False, timeout=60
        )
        assert answer.status_code == 200
        assert server.end() == 0  # what was not sent by then is sent at its end
    spans = [span for one in came for each in one.resource_spans for scope in each.scope_spans for span in scope.spans]
    (request,) = [span for span in spans if span.trace_id.hex() == PARENT.split("-")[1] and span.kind == 2]
    assert (request.name, request.parent_span_id.hex()) == ("POST /api/v1/execute", PARENT.split("-")[2])
    (run,) = [span for span in spans if span.name == "sandbox.run"]
    assert (run.trace_id, run.parent_span_id) == (request.trace_id, request.span_id)
    noted = {one.key: one.value for one in request.attributes}
    assert noted["http.response.status_code"].int_value == 200
    named = {one.key: one.value.string_value for one in came[0].resource_spans[0].resource.attributes}
    assert named["service.name"] == "judge"
    assert "not in any span" not in json.dumps([str(one) for one in came])
