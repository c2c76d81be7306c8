"""The gRPC service of isobox, over a real channel."""

import re
import socket
from pathlib import Path
from typing import Any

import pytest

grpc = pytest.importorskip("grpc", reason="the extra grpc is not installed")
messages = pytest.importorskip("stockade.dialects.isobox.messages", reason="the extra grpc is not installed")

pytestmark = pytest.mark.anyio
MESSAGES, METHODS, SERVICE, STATUS = messages.MESSAGES, messages.METHODS, messages.SERVICE, messages.STATUS


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Client:
    """Calls by name."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel

    async def call(self, method: str, key: str | None = None, **members: Any) -> Any:
        request, response = (MESSAGES[name] for name in METHODS[method])
        stub = self.channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        metadata = (("authorization", key),) if key else ()
        return await stub(request(**members), metadata=metadata, timeout=30)


class Calling:
    """A server with the service, and a client of it."""

    def __init__(self, serve: Any, **settings: Any) -> None:
        self.port = free_port()
        self.serving = serve(grpc_port=self.port, **settings)

    async def __aenter__(self) -> Client:
        await self.serving.__aenter__()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")
        return Client(self.channel)

    async def __aexit__(self, *error: object) -> None:
        await self.channel.close()
        await self.serving.__aexit__(*error)


async def test_a_program_runs(serve: Any) -> None:
    async with Calling(serve) as client:
        answer = await client.call("ExecuteCode", language="python", code="print(6 * 7)")
    assert (answer.stdout, answer.stderr, answer.exit_code) == ("42\n", "", 0)
    assert answer.status == STATUS["SUCCESS"]
    assert answer.time_taken > 0
    assert answer.memory_used > 0
    assert answer.error_message == ""


@pytest.mark.parametrize(
    ("language", "code", "limits", "status", "exit_code"),
    [
        ("python", "raise SystemExit(3)", {}, "RUNTIME_ERROR", 3),
        ("c", "int main({", {}, "COMPILATION_ERROR", 1),
        ("python", "import time; time.sleep(30)", {"wall_time_limit_seconds": 1}, "TIMEOUT", 124),
        ("klingon", "x", {}, "UNSUPPORTED_LANGUAGE", -1),
        ("python", "", {"enable_network": True}, "INTERNAL_ERROR", -1),
    ],
)
async def test_what_became_of_a_program_is_its_status(
    serve: Any, language: str, code: str, limits: dict[str, Any], status: str, exit_code: int
) -> None:
    async with Calling(serve) as client:
        answer = await client.call("ExecuteCode", language=language, code=code, resource_limits=limits)
    assert (answer.status, answer.exit_code) == (STATUS[status], exit_code)
    assert bool(answer.error_message) == (exit_code == -1)


async def test_a_template_is_named_as_in_http(serve: Any) -> None:
    async with Calling(serve) as client:
        answer = await client.call("ExecuteCode", language="python", code="print(1)", template="none")
        assert answer.stdout == "1\n"
        answer = await client.call("ExecuteCode", language="python", code="print(1)", template="sience")
        assert (answer.exit_code, answer.stdout) == (-1, "")
        assert "Unknown template: sience" in answer.error_message


async def test_the_key_travels_bare_in_the_metadata(serve: Any) -> None:
    async with Calling(serve, api_keys=("k",)) as client:
        for key in (None, "wrong"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.call("ExecuteCode", key, language="python", code="")
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        answer = await client.call("ExecuteCode", "k", language="python", code="print(1)")
        assert answer.stdout == "1\n"
        assert (await client.call("HealthCheck")).status == "healthy"


async def test_the_rate_limit_covers_grpc_too(serve: Any) -> None:
    async with Calling(serve, rate_limit_per_minute=1) as client:
        await client.call("ExecuteCode", language="python", code="")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.call("ExecuteCode", language="python", code="")
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_health_and_languages_are_told(serve: Any) -> None:
    async with Calling(serve) as client:
        health = await client.call("HealthCheck")
        languages = (await client.call("GetSupportedLanguages")).languages
    assert (health.status, health.service) == ("healthy", "isobox")
    assert health.version
    python = next(entry for entry in languages if entry.name == "python")
    assert not python.requires_compilation
    assert ".py" in python.file_extensions


async def test_the_proto_file_says_what_the_server_speaks() -> None:
    text = Path(messages.__file__).with_name("isobox.proto").read_text()
    enum = re.search(r"enum ExecutionStatus \{(.*?)\}", text, re.DOTALL)
    assert enum is not None
    assert {name: int(number) for name, number in re.findall(r"(\w+) = (\d+);", enum[1])} == STATUS
    described = {
        name: tuple(
            field for field, _ in sorted(re.findall(r"([\w ]+?) = (\d+);", body), key=lambda found: int(found[1]))
        )
        for name, body in re.findall(r"message (\w+) \{(.*?)\}", text, re.DOTALL)
    }
    assert {name: tuple(f.strip() for f in fields) for name, fields in described.items()} == messages.FIELDS
    methods = re.findall(r"rpc (\w+)\((\w+)\) returns \((\w+)\);", text)
    assert {name: (request, response) for name, request, response in methods} == METHODS
