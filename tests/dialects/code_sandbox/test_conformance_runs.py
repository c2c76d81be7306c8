"""The contract's cases about what becomes of programs."""

import concurrent.futures
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from tests.dialects.code_sandbox.serving import KEY, MOMENT, CodeSandbox, code_sandbox

GO = 'package main\n\nimport "fmt"\n\nfunc main() {\n\tfmt.Println("hello", 6*7)\n}\n'


def test_a_program_succeeds_with_its_output(sandbox: CodeSandbox) -> None:
    """Cases 3 and 4."""
    job = sandbox.run("javascript", 'console.log("hi")')
    result = job["result"]
    assert job["status"] == "succeeded"
    assert (result["stdout"], result["stderr"], result["exitCode"]) == ("hi\n", "", 0)
    assert isinstance(result["duration"], int)
    assert result["duration"] > 0
    assert "error" not in job
    assert job["request"] == {
        "language": "javascript",
        "code": 'console.log("hi")',
        "stdin": "",
        "timeout": 3_000_000_000,
    }
    moments = [job[name] for name in ("createdAt", "startedAt", "completedAt", "updatedAt")]
    assert all(MOMENT.match(moment) for moment in moments)
    assert all(a <= b for a, b in pairwise(datetime.fromisoformat(moment) for moment in moments))
    assert job["completedAt"] == result["completedAt"] == job["updatedAt"]


def test_a_result_tells_what_the_run_used(sandbox: CodeSandbox) -> None:
    """§11, ours."""
    usage = sandbox.run("python", "x = bytearray(8 << 20); print(1)")["result"]["usage"]
    assert usage.keys() == {"cpuTime", "peakMemory"}
    assert 0 < usage["cpuTime"] < 3_000_000_000
    assert usage["peakMemory"] > 8 << 20


def test_standard_input_comes_in(sandbox: CodeSandbox) -> None:
    """Case 15."""
    assert sandbox.run("python", "print(input()[::-1])", stdin="abc\n")["result"]["stdout"] == "cba\n"


def test_without_input_there_is_none(sandbox: CodeSandbox) -> None:
    assert sandbox.run("python", "import sys; print(len(sys.stdin.read()))", stdin=None)["result"]["stdout"] == "0\n"


def test_a_status_other_than_zero_is_a_failure(sandbox: CodeSandbox) -> None:
    """Case 16."""
    job = sandbox.run("python", "import sys; sys.stderr.write('e'); sys.exit(3)")
    assert (job["status"], job["error"]) == ("failed", "process exited with status 3")
    assert (job["result"]["exitCode"], job["result"]["stderr"]) == (3, "e")


def test_a_time_out_keeps_what_was_printed(sandbox: CodeSandbox) -> None:
    """Case 17. The three seconds of the contract are the program's own here: a loaded machine is no fault of ours."""
    job = sandbox.run("python", "import time\nprint(1, flush=True)\ntime.sleep(9)", timeout="1s")
    assert job["status"] == "failed"
    assert job["error"].startswith("execution timed out: limit=1s runtime=")
    assert job["error"].endswith(" overhead=0s")
    assert (job["result"]["exitCode"], job["result"]["stdout"]) == (-1, "1\n")
    assert 1_000_000_000 <= job["result"]["duration"] < 3_000_000_000


def test_a_program_that_computes_has_all_of_its_time(sandbox: CodeSandbox) -> None:
    """CPU time is no limit of the contract's: this server's own default is one second."""
    job = sandbox.run("python", "import time\nwhile time.process_time() < 1.5: pass\nprint(2)", timeout="60s")
    assert job["result"]["stdout"] == "2\n", job


def test_a_job_that_has_not_ended_has_no_result(sandbox: CodeSandbox) -> None:
    """Case 18."""
    job_id = sandbox.queued("python", "import time; time.sleep(2)")
    job = sandbox.read(job_id)
    assert job["status"] in ("queued", "running")
    assert not {"result", "error", "completedAt"} & job.keys()
    assert sandbox.ended(job_id)["status"] == "succeeded"


def test_bytes_that_are_no_text_are_replaced(sandbox: CodeSandbox) -> None:
    """Case 19."""
    code = "import sys; sys.stdout.buffer.write(b'a\\xffb\\x00')"
    assert sandbox.run("python", code)["result"]["stdout"] == "a\ufffdb\0"


def test_go_runs(sandbox: CodeSandbox) -> None:
    """Case 20."""
    job = sandbox.run("go", GO)
    assert (job["status"], job["result"]["stdout"]) == ("succeeded", "hello 42\n"), job


def test_a_go_program_that_does_not_compile_says_where(sandbox: CodeSandbox) -> None:
    """Case 20, and the last of the settled questions."""
    job = sandbox.run("go", "package main\n\nfunc main() { nowhere() }\n")
    assert job["status"] == "failed"
    assert job["result"]["exitCode"] in (1, 2)
    assert job["error"] == f"process exited with status {job['result']['exitCode']}"
    assert "main.go" in job["result"]["stderr"]
    assert "undefined: nowhere" in job["result"]["stderr"]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("x = bytearray(2 << 30); x[::4096] = b'x' * len(x[::4096])", "memory"),
        ("while True: print('x' * 999)", "output"),
    ],
)
def test_running_out_of_a_limit_is_a_failure(sandbox: CodeSandbox, code: str, error: str) -> None:
    """§6, ours."""
    job = sandbox.run("python", code, timeout="20s")
    assert (job["error"], job["result"]["exitCode"]) == (f"{error} limit exceeded", -1), job


def test_a_job_finds_nothing_of_another_and_sees_only_its_own_source(sandbox: CodeSandbox) -> None:
    """Case 28."""
    write = (
        "import os, pathlib\n"
        "for folder in ('.', '/tmp', os.path.expanduser('~'), os.environ['TMPDIR']):\n"
        "    pathlib.Path(folder, 'left').write_text('secret-28')\n"
        "print(sorted(os.listdir('.')))"
    )
    look = (
        "import os, pathlib, time\n"
        "names = [str(pathlib.Path(f, 'left')) for f in ('.', '/tmp', os.path.expanduser('~'), os.environ['TMPDIR'])]\n"
        "print([name for name in names if os.path.exists(name)])\n"
        "found = []\n"
        "for root in ('/proc', '/tmp', '/code', '/home', '/var/tmp', '/dev/shm'):\n"
        "    for folder, _, files in os.walk(root):\n"
        "        for name in files:\n"
        "            if name in ('main.py', 'cmdline', 'environ'):\n"
        "                try:\n"
        "                    text = pathlib.Path(folder, name).read_bytes()\n"
        "                except OSError:\n"
        "                    continue\n"
        "                if b'other-' + b'source' in text:\n"
        "                    found.append((folder, name))\n"
        "print(found)"
    )
    wrote = sandbox.run("python", write)
    assert wrote["status"] == "succeeded", wrote
    other = sandbox.queued("python", "# other-source\nimport time; time.sleep(4)", timeout="10s")
    looked = sandbox.run("python", look, timeout="20s")
    assert looked["result"]["stdout"] == "[]\n[]\n", looked
    sandbox.ended(other)


@pytest.mark.parametrize("target", ["('127.0.0.1', PORT)", "('192.0.2.1', 80)", "('1.1.1.1', 53)"])
def test_a_job_reaches_no_network(sandbox: CodeSandbox, target: str) -> None:
    """Case 29; the first is the server's own address."""
    port = sandbox.url.rpartition(":")[2]
    code = f"import socket\nPORT = {port}\nsocket.create_connection({target}, 2)"
    job = sandbox.run("python", code)
    assert job["status"] == "failed"
    assert "OSError" in job["result"]["stderr"] or "Error" in job["result"]["stderr"]


def test_two_hundred_jobs_at_once_all_end_once(sandbox: CodeSandbox) -> None:
    """Case 38."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda number: sandbox.queued("python", f"print({number})", timeout="20s"), range(200)))
        assert len(set(ids)) == 200
        jobs = list(pool.map(sandbox.ended, ids))
    assert [job["result"]["stdout"] for job in jobs] == [f"{number}\n" for number in range(200)]


def test_a_pool_of_two_runs_two_at_a_time(tmp_path: Path) -> None:
    """Case 27. A pool of two runners is how the reference says that two run at once."""
    code = "import time\nbegan = time.time()\ntime.sleep(1)\nprint(began, time.time())"
    variables = {"SANDBOX_LANGUAGE_CONTAINERS": "python:one|two,py:two", "STOCKADE_API_KEY": KEY}
    with code_sandbox(tmp_path / "data", **variables) as sandbox:
        began = time.monotonic()
        ids = [sandbox.queued("python", code, timeout="20s") for _ in range(6)]
        jobs = [sandbox.ended(job_id) for job_id in ids]
        took_s = time.monotonic() - began
    assert {job["status"] for job in jobs} == {"succeeded"}
    spans = [tuple(map(float, job["result"]["stdout"].split())) for job in jobs]
    for start, _ in spans:
        assert sum(a <= start < b for a, b in spans) <= 2
    assert took_s >= 3
