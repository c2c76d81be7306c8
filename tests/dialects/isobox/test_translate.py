"""The isobox dialect's pure translators, as tables of pairs."""

from typing import Any

import pytest

from stockade.dialects.isobox import translate
from stockade.dialects.isobox.translate import LimitTooHigh, NetworkRefused
from stockade.dialects.isobox.wire import BadValue, ExecuteBody, MissingField, TestCase, WrongType, checked
from stockade.model import LimitOverrides, Limits, Outcome, ProcessResult, RunResult, Usage

MIB = 1024 * 1024
LIMITS = Limits(
    wall_s=10.0,
    cpu_s=5.0,
    cpus=1.0,
    memory_bytes=128 * MIB,
    processes=50,
    disk_bytes=64 * MIB,
    disk_inodes=1000,
    open_files=100,
    stack_bytes=64 * MIB,
    output_bytes=MIB,
)


def process(outcome: Outcome = Outcome.EXITED, **members: Any) -> ProcessResult:
    return ProcessResult(
        **{
            "outcome": outcome,
            "exit_code": 0 if outcome is Outcome.EXITED else None,
            "signal": None,
            "stdout": b"",
            "stderr": b"",
            "stdout_truncated": False,
            "stderr_truncated": False,
            "usage": Usage(wall_s=0.5, cpu_user_s=0.1, cpu_system_s=0.1, memory_peak_bytes=9 * MIB),
            **members,
        }
    )


def ran(result: ProcessResult) -> RunResult:
    return RunResult(language="python", compilation=None, process=result, queued_s=0.0)


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (process(exit_code=0), 0),
        (process(exit_code=255), 255),
        (process(Outcome.SIGNALED, signal=11), 139),
        (process(Outcome.WALL_TIME, signal=9), 124),
        (process(Outcome.CPU_TIME, signal=9), 124),
        (process(Outcome.MEMORY, signal=9), 137),
        (process(Outcome.MEMORY, exit_code=1), 137),
        (process(Outcome.OUTPUT, signal=9), 137),
        (process(Outcome.PROCESSES, exit_code=3), 3),
        (process(Outcome.DISK, signal=7), 135),
        (process(Outcome.CANCELLED), 1),
    ],
)
def test_each_outcome_has_its_exit_code(result: ProcessResult, status: int) -> None:
    assert translate.exit_code(result) == status


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, LimitOverrides()),
        ({"timeout_seconds": 2.5}, LimitOverrides(wall_s=2.5)),
        ({"timeout_seconds": 3}, LimitOverrides(wall_s=3.0)),
        ({"memory_limit_mb": 64}, LimitOverrides(memory_bytes=64 * MIB)),
        ({"resource_limits": {}}, LimitOverrides()),
        ({"resource_limits": {"memory_limit_bytes": 0}}, LimitOverrides()),
        (
            {
                "resource_limits": {
                    "cpu_time_limit_seconds": 1,
                    "wall_time_limit_seconds": 2,
                    "memory_limit_bytes": 3,
                    "stack_limit_bytes": 4,
                    "max_processes": 5,
                    "max_files": 6,
                    "enable_network": False,
                }
            },
            LimitOverrides(cpu_s=1, wall_s=2, memory_bytes=3, stack_bytes=4, processes=5, open_files=6),
        ),
        ({"timeout_seconds": 4, "resource_limits": {"wall_time_limit_seconds": 2}}, LimitOverrides(wall_s=2)),
        ({"timeout_seconds": 1, "resource_limits": {"wall_time_limit_seconds": 2}}, LimitOverrides(wall_s=1)),
        ({"timeout_seconds": 1e9}, LimitOverrides(wall_s=1e9)),
    ],
)
def test_limits_are_understood(members: dict[str, Any], expected: LimitOverrides) -> None:
    body = checked(ExecuteBody, {"language": "python", "code": "", **members})
    assert translate.to_limits(body, LIMITS) == expected


@pytest.mark.parametrize(("given", "asked"), [(None, None), ("", None), ("none", "none"), ("science", "science")])
def test_a_template_is_passed_on_and_an_empty_name_is_none(given: str | None, asked: str | None) -> None:
    body = checked(ExecuteBody, {"language": "python", "code": "", "template": given})
    assert translate.to_run(body, LIMITS).template == asked


def test_a_resource_limit_above_the_maximum_is_refused_by_its_wire_name() -> None:
    members = {"language": "c", "code": "", "resource_limits": {"memory_limit_bytes": 128 * MIB + 1}}
    with pytest.raises(LimitTooHigh, match="maximum is 134217728") as refused:
        translate.to_limits(checked(ExecuteBody, members), LIMITS)
    assert refused.value.name == "memory_limit_bytes"


def test_a_network_is_refused() -> None:
    members = {"language": "c", "code": "", "resource_limits": {"enable_network": True}}
    with pytest.raises(NetworkRefused):
        translate.to_limits(checked(ExecuteBody, members), LIMITS)


@pytest.mark.parametrize(
    ("stderr", "shown"),
    [
        (b"", "Execution timed out after 10.000 seconds"),
        (b"warning\n", "warning\nExecution timed out after 10.000 seconds"),
        (b"warning", "warning\nExecution timed out after 10.000 seconds"),
    ],
)
def test_the_time_limit_is_told_on_a_line_of_its_own(stderr: bytes, shown: str) -> None:
    answer = translate.from_run(ran(process(Outcome.WALL_TIME, signal=9, stderr=stderr)), LIMITS)
    assert answer["stderr"] == shown


def test_the_cpu_limit_is_told_by_its_own_figure() -> None:
    answer = translate.from_run(ran(process(Outcome.CPU_TIME, signal=9)), LIMITS)
    assert answer["stderr"] == "Execution timed out after 5.000 seconds"


@pytest.mark.parametrize(
    ("compilation", "stderr", "status"),
    [
        (process(exit_code=1, stderr=b"main.c:1: error\n"), "main.c:1: error\n", 1),
        (process(exit_code=1, stdout=b"main.pas(1) Fatal\n"), "main.pas(1) Fatal\n", 1),
        (process(exit_code=2, stdout=b"o", stderr=b"e"), "e\no", 2),
        (process(Outcome.SIGNALED, signal=11), "", 139),
        (process(Outcome.WALL_TIME, signal=9), "Compilation timed out after 0.500 seconds", 124),
    ],
)
def test_a_failed_compilation_is_told(compilation: ProcessResult, stderr: str, status: int) -> None:
    result = RunResult(language="c", compilation=compilation, process=None, queued_s=0.0)
    answer = translate.from_run(result, LIMITS)
    assert answer == {
        "stdout": "",
        "stderr": stderr,
        "exit_code": status,
        "time_taken": None,
        "memory_used": None,
        "test_results": None,
        "outcome": compilation.outcome.value,
        "truncated": False,
    }


@pytest.mark.parametrize(
    ("expected", "result", "passed", "message"),
    [
        (None, process(), True, None),
        (None, process(exit_code=3), False, "Exit code: 3"),
        (" 6 ", process(stdout=b"6\n"), True, None),
        ("6", process(stdout=b"6\n", exit_code=1), False, "Expected: '6', Got: '6'"),
        ("15", process(stdout=b"14\n"), False, "Expected: '15', Got: '14'"),
        ("", process(stdout=b" \n"), True, None),
        ("6", process(Outcome.WALL_TIME, signal=9), False, "Execution timed out after 10.000 seconds"),
        (None, process(Outcome.MEMORY, signal=9), False, "Exit code: 137"),
    ],
)
def test_cases_are_judged(expected: str | None, result: ProcessResult, passed: bool, message: str | None) -> None:
    case = TestCase(name="n", input="i", expected_output=expected)
    shown = translate.from_case(case, ran(result), LIMITS)
    assert (shown["passed"], shown["error_message"]) == (passed, message)
    assert shown["actual_output"] == shown["stdout"]


def test_a_cases_time_is_its_wall_and_cpu_limit() -> None:
    case = TestCase(name="n", input="", timeout_seconds=2, memory_limit_mb=3)
    limits = translate.to_case_limits(LimitOverrides(wall_s=9, processes=4), case)
    assert limits == LimitOverrides(wall_s=2, cpu_s=2, memory_bytes=3 * MIB, processes=4)


def test_output_beyond_the_room_is_cut_and_marked() -> None:
    case = TestCase(name="n", input="", expected_output="abc")
    result = translate.from_case(case, ran(process(stdout=b"abcdef", stderr=b"ghi")), LIMITS)
    assert translate.clipped(result, 9) is result
    cut = translate.clipped(result, 4)
    assert (cut["stdout"], cut["actual_output"], cut["stderr"], cut["truncated"]) == ("abcd", "abcd", "", True)


@pytest.mark.parametrize(
    ("result", "label"),
    [
        (ran(process()), "ok"),
        (ran(process(exit_code=1)), "nonzero"),
        (ran(process(Outcome.SIGNALED, signal=6)), "nonzero"),
        (ran(process(Outcome.CPU_TIME)), "timeout"),
        (ran(process(Outcome.MEMORY)), "memory"),
        (ran(process(Outcome.OUTPUT)), "output_limit"),
        (ran(process(Outcome.LOST)), "error"),
        (RunResult(language="c", compilation=process(exit_code=1), process=None, queued_s=0.0), "compile_error"),
    ],
)
def test_each_outcome_has_its_label(result: RunResult, label: str) -> None:
    assert translate.outcome_label(result) == label


@pytest.mark.parametrize(
    ("members", "error", "named"),
    [
        ({"code": 5}, MissingField, "language"),
        ({"language": "c"}, MissingField, "code"),
        ({"language": "c", "code": "", "stdin": 5}, WrongType, "stdin"),
        ({"language": "c", "code": "", "timeout_seconds": True}, WrongType, "timeout_seconds"),
        ({"language": "c", "code": "", "timeout_seconds": "5"}, WrongType, "timeout_seconds"),
        ({"language": "c", "code": "", "timeout_seconds": 0}, BadValue, "greater than 0"),
        ({"language": "c", "code": "", "timeout_seconds": -1}, BadValue, "greater than 0"),
        ({"language": "c", "code": "", "timeout_seconds": float("inf")}, BadValue, "finite"),
        ({"language": "c", "code": "", "memory_limit_mb": 0}, BadValue, "greater than"),
        ({"language": "c", "code": "", "memory_limit_mb": 1.5}, WrongType, "memory_limit_mb"),
        ({"language": "c", "code": "", "args": "x"}, WrongType, "args"),
        ({"language": "c", "code": "", "args": ["a", 1]}, WrongType, r"args\[1\]"),
        ({"language": "c", "code": "", "args": ["a\0b"]}, BadValue, "NUL"),
        ({"language": "c", "code": "", "resource_limits": {"max_files": -1}}, BadValue, "greater than"),
        ({"language": "c", "code": "", "resource_limits": {"max_files": True}}, WrongType, "max_files"),
        ({"language": "c", "code": "", "test_cases": [{"input": ""}]}, MissingField, r"test_cases\[0\].name"),
    ],
)
def test_what_is_wrong_with_a_body_is_named(members: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        checked(ExecuteBody, members)
