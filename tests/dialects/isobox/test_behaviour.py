"""What the isobox dialect does beside the numbered cases."""

import asyncio
import json
from typing import Any

import pytest

from stockade.config import ServerConfig
from stockade.dialects.isobox.access import access
from stockade.dialects.isobox.settings import IsoboxSettings
from stockade.errors import Invalid
from stockade.wire.auth import KeyMissing
from stockade.wire.dialect import Services
from tests.keys import OneKey

pytestmark = pytest.mark.anyio
PRINT_TIME = "import time; print(time.time_ns())"
SERVER_KEY = "sk_" + "1" * 64


async def refused(isobox: Any, status: int = 400, **body: Any) -> dict[str, Any]:
    response = await isobox.execute(**{"language": "python", "code": "print(1)", **body})
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    assert isinstance(answer["error"], str)
    return answer


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"language": "python", "code": "print(1)", "code": "print(2)"}', "duplicate key 'code'"),
        (b'{"language": "python", "code": "\\ud800"}', "lone surrogate"),
        (b'{"language": "python", "code": "", "timeout_seconds": NaN}', "NaN"),
        (b"[1]", "must be a JSON object"),
    ],
)
async def test_json_that_two_programs_could_read_differently_is_refused(isobox: Any, raw: bytes, message: str) -> None:
    response = await isobox.client.post("/execute", content=raw, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"] == "Invalid JSON in request body"
    assert message in response.json()["message"]


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
async def test_another_content_type_is_refused(isobox: Any, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    body = json.dumps({"language": "python", "code": ""})
    response = await isobox.client.post("/execute", content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"] == "Invalid JSON in request body"


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/x+json"])
async def test_spellings_of_the_content_type_are_taken(isobox: Any, content_type: str) -> None:
    body = json.dumps({"language": "python", "code": ""})
    response = await isobox.client.post("/execute", content=body, headers={"Content-Type": content_type})
    assert response.status_code == 200


@pytest.mark.parametrize("value", [0, -1, -0.5])
async def test_a_time_limit_that_is_none_is_refused(isobox: Any, value: float) -> None:
    assert (await refused(isobox, timeout_seconds=value))["error"] == "Invalid value: timeout_seconds"


async def test_a_nul_in_an_argument_is_refused(isobox: Any) -> None:
    assert (await refused(isobox, args=["a\0b"]))["error"] == "Invalid value: args[0]"


async def test_a_limit_above_the_maximum_is_refused_with_the_maximum(isobox: Any) -> None:
    maximum = isobox.engine.limits.maximum.memory_bytes
    answer = await refused(isobox, resource_limits={"memory_limit_bytes": maximum + 1})
    assert answer == {"error": "Limit too high: memory_limit_bytes", "message": f"maximum is {maximum}"}


async def test_times_above_the_maximum_are_cut(isobox: Any) -> None:
    assert (await isobox.python("print(1)", timeout_seconds=1e12, memory_limit_mb=10**12))["stdout"] == "1\n"


async def test_a_network_is_refused(isobox: Any) -> None:
    answer = await refused(isobox, resource_limits={"enable_network": True})
    assert answer["error"] == "Limit not supported: enable_network"


async def test_resource_limits_are_in_force(isobox: Any) -> None:
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    assert (await isobox.python(code, resource_limits={"max_files": 33}))["stdout"] == "33\n"
    answer = await isobox.python("while True: pass", resource_limits={"cpu_time_limit_seconds": 1})
    assert (answer["exit_code"], answer["outcome"]) == (124, "cpu_time")
    assert answer["stderr"] == "Execution timed out after 1.000 seconds"


async def test_a_large_program_runs(isobox: Any) -> None:
    assert (await isobox.python("#" * 1_000_000 + "\nprint('end')"))["stdout"] == "end\n"


async def test_both_streams_are_told_apart(isobox: Any) -> None:
    answer = await isobox.python("import sys; print('o'); print('e', file=sys.stderr)")
    assert (answer["stdout"], answer["stderr"]) == ("o\n", "e\n")


async def test_a_signal_is_128_and_its_number(isobox: Any) -> None:
    answer = await isobox.python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert (answer["exit_code"], answer["outcome"]) == (139, "signaled")


async def test_a_case_that_times_out_does_not_stop_the_others(isobox: Any) -> None:
    response = await isobox.execute(
        "/api/v1/execute/test-cases",
        language="python",
        code="import time\nif input() == 'slow': time.sleep(30)\nprint('done')",
        test_cases=[
            {"name": "a", "input": "slow", "timeout_seconds": 1},
            {"name": "b", "input": "quick", "expected_output": "done"},
        ],
    )
    slow, quick = response.json()["test_results"]
    assert (slow["passed"], slow["exit_code"], slow["outcome"]) == (False, 124, "wall_time")
    assert slow["error_message"] == "Execution timed out after 1.000 seconds"
    assert quick["passed"]
    assert response.json()["stderr"] == ("=== Test Case: a (stderr) ===\nExecution timed out after 1.000 seconds\n")


async def test_cases_are_compiled_once_and_run_apart(isobox: Any) -> None:
    code = (
        "#include <stdio.h>\n#include <unistd.h>\n"
        'int main(void){int n; if(access("mark",F_OK)==0) return 9;'
        ' fclose(fopen("mark","w")); scanf("%d",&n); printf("%d\\n",n*n); return 0;}'
    )
    response = await isobox.execute(
        "/api/v1/execute/test-cases",
        language="c",
        code=code,
        test_cases=[{"name": str(n), "input": str(n), "expected_output": str(n * n)} for n in range(3)],
    )
    assert [result["passed"] for result in response.json()["test_results"]] == [True] * 3


async def test_a_failed_compilation_ends_the_cases(isobox: Any) -> None:
    response = await isobox.execute(
        "/api/v1/execute/test-cases", language="c", code="int main({", test_cases=[{"name": "a", "input": ""}]
    )
    assert response.status_code == 200
    assert response.json()["test_results"] is None
    assert "main.c" in response.json()["stderr"]


async def test_test_cases_are_required_on_their_own_route(isobox: Any) -> None:
    response = await isobox.execute("/api/v1/execute/test-cases", language="python", code="")
    assert response.json() == {"error": "Missing required field: test_cases"}


async def test_too_many_cases_are_refused(serve: Any) -> None:
    async with serve(max_test_cases=2) as isobox:
        cases = [{"name": "n", "input": ""}] * 3
        assert (await refused(isobox, test_cases=cases))["error"] == "Invalid value: test_cases"


async def test_the_output_of_all_cases_together_is_bounded(serve: Any) -> None:
    async with serve(test_output_bytes=65536) as isobox:
        cases = [{"name": "n", "input": "", "expected_output": "x" * 50_000}] * 3
        answer = await isobox.python("print('x' * 50_000)", test_cases=cases)
    assert [len(result["stdout"]) for result in answer["test_results"]] == [50_001, 15_535, 0]
    assert [result["passed"] for result in answer["test_results"]] == [True] * 3
    assert [result["truncated"] for result in answer["test_results"]] == [False, True, True]


async def test_a_request_id_is_echoed_or_made(isobox: Any) -> None:
    body = {"language": "python", "code": ""}
    sent = await isobox.client.post("/execute", json=body, headers={"X-Request-ID": "abc-123"})
    made = await isobox.client.post("/execute", json=body)
    unfit = await isobox.client.post("/execute", json=body, headers={"X-Request-ID": "a b\tc"})
    assert sent.headers["X-Request-ID"] == "abc-123"
    assert len(made.headers["X-Request-ID"]) == 32
    assert len(unfit.headers["X-Request-ID"]) == 32


async def test_languages_are_listed(isobox: Any) -> None:
    response = await isobox.client.get("/languages")
    assert response.status_code == 200
    entries = {entry["name"]: entry for entry in response.json()}
    python = entries["python"]
    assert python["available"]
    assert python["version"].startswith("3.")
    assert (python["requires_compilation"], python["file_extensions"][0]) == (False, ".py")
    assert entries["c"]["requires_compilation"]


async def test_an_unknown_language_is_counted_as_unknown(serve: Any) -> None:
    async with serve() as isobox:
        await isobox.execute(language="klingon", code="x")
        metrics = (await isobox.client.get("/metrics")).text
    assert 'isobox_executions_total{language="unknown",outcome="error"} 1.0' in metrics
    assert 'isobox_requests_total{route="/execute",status="400"} 1.0' in metrics
    assert "klingon" not in metrics


async def test_the_key_is_checked_before_the_body(serve: Any) -> None:
    async with serve(api_keys=("k",)) as isobox:
        response = await isobox.client.post("/execute", content=b"{", headers={"Content-Type": "application/json"})
    assert response.status_code == 401


async def test_the_servers_own_keys_are_keys_here(serve: Any) -> None:
    async with serve(keys=OneKey(secret=SERVER_KEY), auth_enabled="true") as isobox:
        body = {"language": "python", "code": "print(1)"}
        assert (await isobox.client.post("/execute", json=body)).status_code == 401
        response = await isobox.client.post("/execute", json=body, headers={"X-API-Key": SERVER_KEY})
        assert response.json()["stdout"] == "1\n"


async def test_another_header_may_carry_the_key(serve: Any) -> None:
    async with serve(api_keys=("k",), api_key_header="X-Secret") as isobox:
        body = {"language": "python", "code": ""}
        assert (await isobox.client.post("/execute", json=body, headers={"X-Secret": "k"})).status_code == 200
        assert "X-Secret" in (await isobox.client.post("/execute", json=body)).json()["message"]


async def test_auth_status_tells_the_truth(serve: Any) -> None:
    async with serve(api_keys=("k",)) as isobox:
        without = (await isobox.client.get("/auth/status")).json()
        right = (await isobox.client.get("/auth/status", headers={"X-API-Key": "k"})).json()
        wrong = (await isobox.client.get("/auth/status", headers={"X-API-Key": "x"})).json()
    assert without == {
        "authenticated": False,
        "auth_enabled": True,
        "auth_type": "apikey",
        "message": "Authentication status endpoint",
    }
    assert (right["authenticated"], wrong["authenticated"]) == (True, False)


def services(*, open_access: bool, **settings: Any) -> Services:
    return Services(
        engine=None,  # type: ignore[arg-type]  # who may come in does not depend on it
        keys=OneKey(secret=SERVER_KEY),
        settings=IsoboxSettings(**settings),
        server=ServerConfig(),
        registry=None,  # type: ignore[arg-type]
        open_access=open_access,
    )


@pytest.mark.parametrize(
    ("open_access", "settings", "enabled", "kind"),
    [
        (True, {}, False, "none"),
        (False, {}, True, "apikey"),
        (True, {"api_keys": ("k",)}, True, "apikey"),
        (True, {"api_keys": ("k",), "auth_enabled": "false"}, False, "none"),
        (True, {"auth_enabled": "true"}, True, "apikey"),
        (True, {"auth_type": "none", "api_keys": ("k",)}, False, "none"),
        (True, {"auth_type": "oauth2", "oauth2_userinfo_url": "https://p.example/me"}, True, "oauth2"),
        (True, {"auth_type": "jwt", "jwt_issuer_url": "https://p.example", "jwt_audience": "a"}, True, "jwt"),
    ],
)
async def test_who_may_come_in_follows_from_address_and_settings(
    open_access: bool, settings: dict[str, Any], enabled: bool, kind: str
) -> None:
    found = access(services(open_access=open_access, **settings))
    assert (found.enabled, found.kind) == (enabled, kind)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"auth_enabled": "false"}, "auth_enabled is false"),
        ({"auth_type": "none"}, 'auth_type is "none"'),
        ({"auth_type": "jwt"}, "jwt_issuer_url"),
        ({"auth_type": "oauth2"}, "oauth2_userinfo_url"),
        ({"auth_type": "oauth2", "oauth2_userinfo_url": "http://p.example/me"}, "must begin with https"),
    ],
)
async def test_settings_that_would_open_the_door_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        access(services(open_access=False, **settings))


async def test_a_reachable_server_demands_a_key() -> None:
    from stockade.wire.auth import Credentials

    found = access(services(open_access=False))
    with pytest.raises(KeyMissing):
        await found.authenticator.actor(Credentials(address="192.0.2.1"))


async def test_equal_requests_of_one_key_are_answered_once(serve: Any) -> None:
    async with serve(dedup_enabled=True, api_keys=("a", "b")) as isobox:
        body = {"language": "python", "code": PRINT_TIME}

        async def stdout(key: str, **members: Any) -> str:
            response = await isobox.client.post("/execute", json={**body, **members}, headers={"X-API-Key": key})
            return str(response.json()["stdout"])

        first = await stdout("a")
        assert await stdout("a") == first
        assert await stdout("a", unknown=1) == first
        others = [
            await stdout("b"),
            await stdout("a", stdin="x"),
            await stdout("a", args=["x"]),
            await stdout("a", timeout_seconds=5),
            await stdout("a", template="none"),
            await stdout("a", code=PRINT_TIME + " "),
        ]
        stats = await isobox.client.get("/admin/dedup/stats", headers={"X-API-Key": "a"})
        denied = await isobox.client.get("/admin/dedup/stats")
    assert len({first, *others}) == 7
    assert stats.json() == {
        "dedup_enabled": True,
        "message": "Deduplication is on",
        "cache_type": "memory",
        "ttl_seconds": 3600.0,
        "entries": 7,
        "hits": 2,
        "misses": 7,
    }
    assert denied.status_code == 401


@pytest.mark.parametrize(
    ("path", "members"),
    [
        ("/execute", {}),
        ("/execute", {"test_cases": [{"name": "n", "input": ""}]}),
        ("/api/v1/execute/test-cases", {"test_cases": [{"name": "n", "input": ""}]}),
        ("/api/v1/execute/test-files", {"test_files": [{"name": "n", "content": ""}]}),
        ("/api/v1/execute/test-urls", {"test_urls": [{"name": "n", "url": "https://example.org"}]}),
    ],
)
async def test_every_body_may_name_a_template_and_an_unknown_one_is_refused(
    isobox: Any, path: str, members: dict[str, Any]
) -> None:
    body = {"language": "python", "code": "print(1)", **members}
    refused = await isobox.execute(path, **body, template="sience")
    assert (refused.status_code, refused.json()) == (
        400,
        {"error": "Unknown template: sience", "message": "known templates: none, python"},
    )
    if "test_urls" not in members:  # nothing may be fetched
        for template in (None, "", "none", "python"):
            assert (await isobox.execute(path, **body, template=template)).status_code == 200
    assert (await isobox.execute(path, **body, template=1)).status_code == 400


async def test_without_deduplication_each_request_runs(isobox: Any) -> None:
    assert (await isobox.python(PRINT_TIME))["stdout"] != (await isobox.python(PRINT_TIME))["stdout"]
    stats = await isobox.client.get("/admin/dedup/stats")
    assert stats.json()["dedup_enabled"] is False


async def test_what_ran_out_of_time_is_not_kept(serve: Any) -> None:
    async with serve(dedup_enabled=True) as isobox:
        await isobox.python("import time; time.sleep(30)", timeout_seconds=0.2)
        assert (await isobox.client.get("/admin/dedup/stats")).json()["entries"] == 0


async def test_requests_of_one_client_at_a_time_are_limited(serve: Any) -> None:
    async with serve(rate_limit_concurrent=1) as isobox:
        responses = await asyncio.gather(
            *(isobox.execute(language="python", code="import time; time.sleep(0.5)") for _ in range(3))
        )
        after = await isobox.execute(language="python", code="")
    assert sorted(response.status_code for response in responses) == [200, 429, 429]
    limited = next(response for response in responses if response.status_code == 429)
    assert int(limited.headers["Retry-After"]) >= 1
    assert after.status_code == 200


async def test_a_second_listener_shares_the_first_ones_rates(serve: Any) -> None:
    """A port of its own beside the merged server must not double anybody's quota."""
    from stockade.dialects.isobox.assembly import isobox_of

    async with serve(rate_limit_per_minute=1) as isobox:
        assert isobox_of(isobox.services) is isobox_of(isobox.services)


@pytest.mark.parametrize(
    ("header", "error"),
    [
        (None, "Authorization header not provided"),
        ("Basic abc", "Invalid Authorization header format"),
        ("Bearer made-up", "Invalid JWT token"),
    ],
)
async def test_each_refusal_of_a_token_has_its_own_words(serve: Any, header: str | None, error: str) -> None:
    pytest.importorskip("jwt", reason="the extra jwt is not installed")
    async with serve(auth_type="jwt", jwt_issuer_url="https://issuer.example", jwt_audience="stockade") as isobox:
        headers = {"Authorization": header} if header else {}
        response = await isobox.client.post("/execute", json={"language": "python", "code": ""}, headers=headers)
        assert (await isobox.client.get("/health")).status_code == 200
    assert response.status_code == 401
    assert response.json()["error"] == error
    assert response.json()["message"]


async def test_arguments_that_the_kernel_does_not_take_are_not_a_fault_of_the_server(isobox: Any) -> None:
    """execve(2) takes 128 KiB for one argument."""
    response = await isobox.execute(language="python", code="print(1)", args=["x" * 200_000])
    assert response.status_code in (200, 400), response.text
    assert (await isobox.python("print(1)"))["stdout"] == "1\n"
