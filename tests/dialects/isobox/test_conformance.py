"""The 38 numbered cases of docs/dialects/isobox.md, over HTTP, each program in a real sandbox."""

import asyncio
import glob
import itertools
import json
import re
import resource
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.anyio

HELLO = "print('Hello from isobox!')"
GONE_WITHIN_S = 30.0


def processes_with(marker: str) -> list[str]:
    """Command lines on this host that hold *marker*."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            line = Path(path).read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if marker in line:
            found.append(line)
    return found


async def until(condition: Callable[[], bool], within_s: float = GONE_WITHIN_S) -> None:
    """Look until *condition* holds; fail when it does not in time."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  # nothing tells us of foreign processes
            await asyncio.sleep(0.02)


def local_addresses() -> list[str]:
    """IPv4 addresses of this host, from the kernel's routing table."""
    table = Path("/proc/net/fib_trie").read_text().splitlines()
    found = {
        match[1]
        for line, following in itertools.pairwise(table)
        if "host LOCAL" in following and (match := re.search(r"\|-- ([0-9.]+)", line))
    }
    return sorted(found | {"127.0.0.1"})


async def test_health_names_isobox(isobox: Any) -> None:
    """Case 1."""
    response = await isobox.client.get("/health")
    assert response.status_code == 200
    body = response.json()
    assert set(body) == {"status", "service", "version"}
    assert (body["status"], body["service"]) == ("healthy", "isobox")
    assert body["version"]


async def test_python_hello(isobox: Any) -> None:
    """Case 2."""
    answer = await isobox.python(HELLO)
    assert (answer["stdout"], answer["stderr"], answer["exit_code"]) == ("Hello from isobox!\n", "", 0)
    assert answer["time_taken"] > 0
    assert answer["memory_used"] > 0
    assert answer["test_results"] is None
    assert answer["outcome"] == "exited"


async def test_node_hello(isobox: Any) -> None:
    """Case 3."""
    response = await isobox.execute(language="node", code="console.log([1,2,3].length)")
    assert response.json()["stdout"] == "3\n"
    assert response.json()["exit_code"] == 0


async def test_a_program_that_fails_is_an_answer(isobox: Any) -> None:
    """Case 4."""
    answer = await isobox.python("print(undefined_variable)")
    assert (answer["exit_code"], answer["stdout"]) == (1, "")
    assert "NameError" in answer["stderr"]
    assert "main.py" in answer["stderr"]


async def test_exit_status_is_the_programs(isobox: Any) -> None:
    """Case 5."""
    assert (await isobox.python("import sys; sys.exit(42)"))["exit_code"] == 42


async def test_an_empty_program_runs(isobox: Any) -> None:
    """Case 6."""
    answer = await isobox.python("")
    assert (answer["stdout"], answer["stderr"], answer["exit_code"]) == ("", "", 0)


async def test_an_unknown_language_is_named_and_the_known_ones_listed(isobox: Any) -> None:
    """Case 7."""
    response = await isobox.execute(language="klingon", code="x")
    assert response.status_code == 400
    assert response.json()["error"] == "Unsupported language: klingon"
    assert "python" in response.json()["message"]


@pytest.mark.parametrize(
    ("body", "missing"), [({"code": "x"}, "language"), ({"language": "python"}, "code"), ({}, "language")]
)
async def test_a_missing_field_is_named(isobox: Any, body: dict[str, str], missing: str) -> None:
    """Case 8."""
    response = await isobox.execute(**body)
    assert response.status_code == 400
    assert response.json() == {"error": f"Missing required field: {missing}"}


@pytest.mark.parametrize("raw", [b'{"language":', b"", b"print(1)", b'{"language": "python", "code": "\xff"}'])
async def test_a_body_that_is_not_json_is_refused(isobox: Any, raw: bytes) -> None:
    """Case 9."""
    response = await isobox.client.post("/execute", content=raw, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json() == {"error": "Invalid JSON in request body"}


@pytest.mark.parametrize("body", [{"language": "python", "code": None}, {"language": 5, "code": "x"}])
async def test_a_member_of_another_type_is_refused(isobox: Any, body: dict[str, Any]) -> None:
    """Case 10."""
    response = await isobox.client.post("/execute", json=body)
    assert response.status_code == 400
    assert response.json()["error"] == "Invalid JSON in request body"
    assert ("code" if body["code"] is None else "language") in response.json()["message"]


async def test_unknown_members_are_ignored(isobox: Any) -> None:
    """Case 11."""
    assert (await isobox.python("print(1)", colour="red"))["stdout"] == "1\n"


async def test_a_body_of_three_mebibytes_is_too_large(isobox: Any) -> None:
    """Case 12; announced, and sent in chunks without an announced length."""
    body = json.dumps({"language": "python", "code": "#" * 3 * 1024 * 1024}).encode()

    async def chunks() -> Any:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    for content in (body, chunks()):
        response = await isobox.client.post("/execute", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 413
        assert response.json()["error"] == "Request body too large"


async def test_wrong_methods_and_unknown_paths(isobox: Any) -> None:
    """Case 13."""
    assert (await isobox.client.get("/execute")).status_code == 405
    assert (await isobox.client.post("/nope")).status_code == 404


async def test_text_beyond_ascii_passes_unharmed(isobox: Any) -> None:
    """Case 14."""
    assert (await isobox.python("print('π')"))["stdout"] == "π\n"


async def test_invalid_utf8_output_is_replaced(isobox: Any) -> None:
    """Case 15."""
    answer = await isobox.python("import os; os.write(1, b'a\\xffb')")
    assert answer["stdout"] == "a\N{REPLACEMENT CHARACTER}b"


async def test_a_program_that_never_ends_is_ended(isobox: Any) -> None:
    """Case 16."""
    marker = uuid.uuid4().hex
    answer = await isobox.python("while True: pass", timeout_seconds=1, args=[marker])
    assert answer["exit_code"] == 124
    assert answer["stderr"] == "Execution timed out after 1.000 seconds"
    assert answer["outcome"] == "wall_time"
    await until(lambda: not processes_with(marker))


async def test_output_before_the_time_limit_is_kept(isobox: Any) -> None:
    """Case 17."""
    answer = await isobox.python("print('a',flush=True)\nimport time; time.sleep(60)", timeout_seconds=1)
    assert (answer["stdout"], answer["exit_code"]) == ("a\n", 124)


async def test_memory_is_limited(isobox: Any) -> None:
    """Case 18."""
    answer = await isobox.python("x=bytearray(600*1024*1024)")
    assert answer["exit_code"] in (1, 137)
    assert answer["exit_code"] == 137 or "MemoryError" in answer["stderr"]
    assert (await isobox.client.get("/health")).status_code == 200


async def test_a_fork_bomb_harms_nobody(isobox: Any) -> None:
    """Case 19."""
    answer = await isobox.python("import os\nwhile True: os.fork()", timeout_seconds=2)
    assert answer["exit_code"] != 0
    assert (await isobox.python(HELLO))["exit_code"] == 0


async def test_the_hosts_addresses_cannot_be_reached(isobox: Any) -> None:
    """Case 20."""
    with socket.create_server(("0.0.0.0", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        for address in local_addresses():
            answer = await isobox.python(f"import socket; socket.create_connection(({address!r},{port}),2)")
            assert answer["exit_code"] == 1, answer
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("directory", ["/tmp", ".", "~"])
async def test_nothing_outlives_a_run(isobox: Any, directory: str) -> None:
    """Case 21."""
    path = f"import os; p=os.path.join(os.path.expanduser({directory!r}),'mark')\n"
    assert (await isobox.python(path + "open(p,'w').write('x'); print(os.path.exists(p))"))["stdout"] == "True\n"
    assert (await isobox.python(path + "print(os.path.exists(p))"))["stdout"] == "False\n"


async def test_the_working_directory_holds_the_program_alone(isobox: Any) -> None:
    """Case 22."""
    answer = await isobox.python("import os; print(sorted(os.listdir('.')))")
    assert answer["stdout"] == "['main.py']\n"


async def test_stdin_is_fed_to_the_program(isobox: Any) -> None:
    """Case 23."""
    assert (await isobox.python("print(input()[::-1])", stdin="abc\n"))["stdout"] == "cba\n"


async def test_arguments_are_not_seen_by_a_shell(isobox: Any) -> None:
    """Case 24."""
    answer = await isobox.python("import sys; print(sys.argv[1:])", args=["a b", "$(id)"])
    assert answer["stdout"] == "['a b', '$(id)']\n"


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("go", 'package main\nimport "fmt"\nfunc main(){fmt.Println("go")}'),
        ("rust", 'fn main(){println!("rust");}'),
        ("java", 'public class Main{public static void main(String[] a){System.out.println("java");}}'),
        ("c", '#include <stdio.h>\nint main(void){puts("c");return 0;}'),
        ("cpp", '#include <iostream>\nint main(){std::cout<<"cpp"<<std::endl;}'),
    ],
)
async def test_compiled_languages_run(isobox: Any, language: str, code: str) -> None:
    """Case 25."""
    if not isobox.engine.languages.is_available(language):
        packages = " ".join(isobox.engine.languages.find(language).packages)
        pytest.skip(f"{language} is not installed (Debian: {packages})")
    response = await isobox.execute(language=language, code=code)
    assert response.status_code == 200
    assert response.json()["stdout"] == f"{language}\n", response.json()


async def test_a_failed_compilation_is_the_compilers_answer(isobox: Any) -> None:
    """Case 26."""
    answer = (await isobox.execute(language="c", code="int main({")).json()
    assert (answer["exit_code"], answer["stdout"], answer["time_taken"]) == (1, "", None)
    assert "main.c" in answer["stderr"]
    assert answer["test_results"] is None


async def test_the_later_path_answers_the_same(isobox: Any) -> None:
    """Case 27."""
    answer = (await isobox.execute("/api/v1/execute", language="python", code=HELLO)).json()
    assert (answer["stdout"], answer["stderr"], answer["exit_code"]) == ("Hello from isobox!\n", "", 0)


CASES: list[dict[str, Any]] = [
    {"name": "three", "input": "3", "expected_output": "9"},
    {"name": "wrong", "input": "4", "expected_output": "15"},
]


def without_figures(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if k not in ("time_taken", "memory_used", "outcome", "truncated")}


@pytest.mark.parametrize("path", ["/api/v1/execute/test-cases", "/execute"])
async def test_test_cases_are_judged(isobox: Any, path: str) -> None:
    """Case 28; `execute` takes test cases as well."""
    response = await isobox.execute(path, language="python", code="print(int(input()) ** 2)", test_cases=CASES)
    assert response.status_code == 200
    answer = response.json()
    assert [without_figures(result) for result in answer.pop("test_results")] == [
        {
            "name": "three",
            "passed": True,
            "stdout": "9\n",
            "stderr": "",
            "exit_code": 0,
            "error_message": None,
            "input": "3",
            "expected_output": "9",
            "actual_output": "9\n",
        },
        {
            "name": "wrong",
            "passed": False,
            "stdout": "16\n",
            "stderr": "",
            "exit_code": 0,
            "error_message": "Expected: '15', Got: '16'",
            "input": "4",
            "expected_output": "15",
            "actual_output": "16\n",
        },
    ]
    assert answer == {
        "stdout": "=== Test Case: three ===\n9\n\n=== Test Case: wrong ===\n16\n\n",
        "stderr": "",
        "exit_code": 1,
        "time_taken": None,
        "memory_used": None,
        "outcome": None,
        "truncated": False,
    }


@pytest.mark.parametrize(("status", "passed", "message"), [(0, True, None), (3, False, "Exit code: 3")])
async def test_without_an_expectation_the_exit_status_counts(
    isobox: Any, status: int, passed: bool, message: str | None
) -> None:
    """Case 29."""
    (result,) = await judged(isobox, f"raise SystemExit({status})", {"name": "n", "input": ""})
    assert (result["passed"], result["error_message"]) == (passed, message)


@pytest.mark.parametrize(("code", "passed"), [("print(6)", True), ("print(6); raise SystemExit(1)", False)])
async def test_output_is_compared_trimmed_and_the_status_counts_too(isobox: Any, code: str, passed: bool) -> None:
    """Case 30."""
    (result,) = await judged(isobox, code, {"name": "n", "input": "", "expected_output": " 6 "})
    assert result["passed"] is passed


async def judged(isobox: Any, code: str, *cases: dict[str, Any], **members: Any) -> list[dict[str, Any]]:
    response = await isobox.execute(
        "/api/v1/execute/test-cases", language="python", code=code, test_cases=cases, **members
    )
    assert response.status_code == 200, response.text
    results: list[dict[str, Any]] = response.json()["test_results"]
    return results


async def test_files_are_inputs(isobox: Any) -> None:
    """Case 31."""
    response = await isobox.execute(
        "/api/v1/execute/test-files",
        language="python",
        code="print(input()[::-1])",
        test_files=[{"name": "n", "content": "Hello"}],
    )
    (result,) = response.json()["test_results"]
    assert (result["actual_output"], result["expected_output"], result["passed"]) == ("olleH\n", None, True)


@pytest.mark.parametrize("hosts", [(), ("*",)])
async def test_urls_that_lead_inwards_are_not_fetched(serve: Any, hosts: tuple[str, ...]) -> None:
    """Case 32; whether or not the operator has listed any host."""
    async with serve(test_url_hosts=hosts) as isobox:
        for url in ("http://127.0.0.1:1/x", "http://169.254.169.254/latest/meta-data/", "file:///etc/passwd"):
            response = await isobox.execute(
                "/api/v1/execute/test-urls",
                language="python",
                code="print(1)",
                test_urls=[{"name": "n", "url": url}],
            )
            assert response.status_code == 400
            assert response.json()["error"] == "Failed to download test case"
            assert response.json()["message"].startswith(f"Failed to download {url}: ")


async def test_api_keys_are_demanded_where_they_are_set(serve: Any) -> None:
    """Case 33."""
    body = {"language": "python", "code": "print(1)"}
    async with serve(api_keys=("k1", "k2")) as isobox:
        missing = await isobox.client.post("/execute", json=body)
        wrong = await isobox.client.post("/execute", json=body, headers={"X-API-Key": "nope"})
        right = await isobox.client.post("/execute", json=body, headers={"X-API-Key": "k2"})
        health = await isobox.client.get("/health")
    assert missing.status_code == 401
    assert missing.json() == {
        "error": "API Key not provided",
        "message": "Please provide an X-API-Key header",
    }
    assert wrong.status_code == 401
    assert wrong.json() == {"error": "Invalid API Key", "message": "The provided API key is not valid"}
    assert right.status_code == 200
    assert health.status_code == 200


async def test_the_rate_is_limited_where_that_is_set(serve: Any) -> None:
    """Case 34."""
    async with serve(rate_limit_per_minute=2, rate_limit_burst=2) as isobox:
        first, second, third = [await isobox.execute(language="python", code="") for _ in range(3)]
        assert (await isobox.client.get("/health")).status_code == 200
    assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
    assert int(third.headers["Retry-After"]) >= 1
    assert third.json()["error"] == "Rate limit exceeded"
    assert first.headers["X-RateLimit-Limit"] == "2"
    assert first.headers["X-RateLimit-Remaining"] == "1"
    assert int(first.headers["X-RateLimit-Reset"]) >= 1


async def test_runs_are_counted(isobox: Any) -> None:
    """Case 35."""
    await isobox.python(HELLO)
    response = await isobox.client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    assert re.search(
        r'^isobox_executions_total\{language="python",outcome="ok"\} [1-9]', response.text, flags=re.MULTILINE
    )
    for name in ("isobox_execution_seconds_bucket", "isobox_running", "isobox_queued", "isobox_rate_limited_total"):
        assert re.search(rf"^{name}\b", response.text, flags=re.MULTILINE), name


async def test_twenty_at_once_are_answered(isobox: Any) -> None:
    """Case 36."""
    answers = await asyncio.gather(*(isobox.python(HELLO) for _ in range(20)))
    assert [answer["stdout"] for answer in answers] == ["Hello from isobox!\n"] * 20


async def test_a_client_that_hangs_up_ends_its_run(isobox: Any) -> None:
    """Case 37."""
    marker = uuid.uuid4().hex
    request = asyncio.create_task(isobox.python("import time; time.sleep(10)", args=[marker]))
    await until(lambda: bool(processes_with(marker)))
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await until(lambda: not processes_with(marker))
    await until(lambda: not isobox.engine.queue.running)
    assert not glob.glob("/tmp/isobox-*")


async def test_a_flood_of_output_is_cut(isobox: Any) -> None:
    """Case 38."""
    limit = isobox.engine.limits.defaults.output_bytes
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = await isobox.python("import sys\nfor _ in range(100): sys.stdout.write('x' * 1024 * 1024)")
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert len(answer["stdout"]) == limit
    assert (answer["exit_code"], answer["truncated"], answer["outcome"]) == (137, True, "output")
    assert grown_kib < 64 * 1024
