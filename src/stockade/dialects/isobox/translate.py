"""Between the isobox wire and the engine: pure functions, tested as tables without a server."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from stockade.dialects.isobox.wire import (
    ExecuteBody,
    FilesBody,
    ProgramBody,
    ResourceLimits,
    TestCase,
)
from stockade.errors import Invalid, Unsupported
from stockade.model import (
    LimitOverrides,
    Limits,
    Outcome,
    ProcessResult,
    RunResult,
    RunSpec,
)

__all__ = [
    "LimitTooHigh",
    "NetworkRefused",
    "clipped",
    "exit_code",
    "from_case",
    "from_cases",
    "from_compilation",
    "from_run",
    "outcome_label",
    "repeatable",
    "to_case_limits",
    "to_cases",
    "to_limits",
    "to_run",
]

MIB = 1024 * 1024
TIMED_OUT = 124
"""Exit status of `timeout(1)` for a program that ran out of time."""
KILLED = 137
"""128 + SIGKILL."""
NO_STATUS = 1

_LIMIT_NAMES = {
    "cpu_time_limit_seconds": "cpu_s",
    "wall_time_limit_seconds": "wall_s",
    "memory_limit_bytes": "memory_bytes",
    "stack_limit_bytes": "stack_bytes",
    "max_processes": "processes",
    "max_files": "open_files",
}


class LimitTooHigh(Invalid):
    """A member of `resource_limits` is above what this server allows."""

    code = "isobox.limit_too_high"

    def __init__(self, name: str, maximum: float) -> None:
        self.name = name
        self.maximum = maximum
        super().__init__(f"maximum is {maximum:.15g}")


class NetworkRefused(Unsupported):
    """`enable_network` was asked for."""

    code = "isobox.network"

    def __init__(self) -> None:
        super().__init__("a run on this server has no network; leave enable_network out or set it to false")


def to_run(body: ProgramBody, maximum: Limits) -> RunSpec:
    """The run that *body* asks for, without its test cases.

    Raises:
        LimitTooHigh, NetworkRefused: see `to_limits`.
    """
    stdin = body.stdin if isinstance(body, ExecuteBody) else None
    return RunSpec(
        language=body.language,
        code=body.code,
        stdin=(stdin or "").encode(),
        args=tuple(body.args or ()),
        template=body.template or None,
        backend=body.backend or "",
        limits=to_limits(body, maximum),
    )


def to_limits(body: ProgramBody, maximum: Limits) -> LimitOverrides:
    """The limits that *body* asks for; of two that limit the same, the smaller one.

    Raises:
        LimitTooHigh: a member of `resource_limits` is above *maximum*.
        NetworkRefused: a network was asked for.
    """
    limits = LimitOverrides(wall_s=body.timeout_seconds, memory_bytes=_bytes(body.memory_limit_mb))
    if body.resource_limits is None:
        return limits
    return replace(limits, **_resource_limits(body.resource_limits, limits, maximum))


def _resource_limits(asked: ResourceLimits, beside: LimitOverrides, maximum: Limits) -> dict[str, Any]:
    if asked.enable_network:
        raise NetworkRefused
    chosen: dict[str, Any] = {}
    for wire_name, name in _LIMIT_NAMES.items():
        value = getattr(asked, wire_name)
        if value == 0:
            continue  # protobuf cannot tell "not set" from 0
        if value > getattr(maximum, name):
            raise LimitTooHigh(wire_name, getattr(maximum, name))
        other = getattr(beside, name)
        chosen[name] = value if other is None else min(value, other)
    return chosen


def to_case_limits(limits: LimitOverrides, case: TestCase) -> LimitOverrides:
    """*limits* with those of *case* in their place; its time is both wall and CPU time."""
    if case.timeout_seconds is not None:
        limits = replace(limits, wall_s=case.timeout_seconds, cpu_s=case.timeout_seconds)
    if case.memory_limit_mb is not None:
        limits = replace(limits, memory_bytes=_bytes(case.memory_limit_mb))
    return limits


def to_cases(body: FilesBody) -> list[TestCase]:
    """The test cases that named files amount to."""
    return [TestCase(name=file.name, input=file.content) for file in body.test_files]


def _bytes(mebibytes: int | None) -> int | None:
    return None if mebibytes is None else mebibytes * MIB


def exit_code(result: ProcessResult) -> int:
    """The status that isobox's clients see. A limit that ended the program goes before the program's own status."""
    match result.outcome:
        case Outcome.WALL_TIME | Outcome.CPU_TIME:
            return TIMED_OUT
        case Outcome.MEMORY | Outcome.OUTPUT:
            return KILLED
    if result.exit_code is not None:
        return result.exit_code
    return NO_STATUS if result.signal is None else 128 + result.signal


def from_run(result: RunResult, limits: Limits) -> dict[str, Any]:
    """The answer to a run that was made under *limits*."""
    if result.process is None:
        return from_compilation(result.last)
    process = result.process
    return {
        "stdout": _text(process.stdout),
        "stderr": _with_line(_text(process.stderr), _timeout_sentence(process, limits)),
        "exit_code": exit_code(process),
        "time_taken": round(process.usage.wall_s, 6),
        "memory_used": process.usage.memory_peak_bytes,
        "test_results": None,
        "outcome": process.outcome.value,
        "truncated": process.stdout_truncated or process.stderr_truncated,
    }


def from_compilation(compilation: ProcessResult) -> dict[str, Any]:
    """The answer when the compilation failed: nothing has run."""
    # Several compilers (fpc, mcs, dotnet) print their errors to standard output.
    messages = _text(compilation.stderr)
    if compilation.stdout.strip():
        messages = _with_line(messages, _text(compilation.stdout))
    if compilation.outcome in (Outcome.WALL_TIME, Outcome.CPU_TIME):
        messages = _with_line(
            messages,
            f"Compilation timed out after {compilation.usage.wall_s:.3f} seconds",
        )
    return {
        "stdout": "",
        "stderr": messages,
        # Nothing was compiled, so 0 would be a lie even if the compiler said so.
        "exit_code": exit_code(compilation) or NO_STATUS,
        "time_taken": None,
        "memory_used": None,
        "test_results": None,
        "outcome": compilation.outcome.value,
        "truncated": compilation.stdout_truncated or compilation.stderr_truncated,
    }


def from_case(case: TestCase, result: RunResult, limits: Limits) -> dict[str, Any]:
    """One test case's result."""
    process = result.last
    answer = from_run(result, limits)
    expected = None if case.expected_output is None else case.expected_output.strip()
    passed = answer["exit_code"] == 0 and expected in (None, answer["stdout"].strip())
    return {
        "name": case.name,
        "passed": passed,
        "stdout": answer["stdout"],
        "stderr": answer["stderr"],
        "exit_code": answer["exit_code"],
        "time_taken": answer["time_taken"],
        "memory_used": answer["memory_used"],
        "error_message": None if passed else _why_failed(process, limits, answer, expected),
        "input": case.input,
        "expected_output": case.expected_output,
        "actual_output": answer["stdout"],
        "outcome": answer["outcome"],
        "truncated": answer["truncated"],
    }


def _why_failed(process: ProcessResult, limits: Limits, answer: dict[str, Any], expected: str | None) -> str:
    if sentence := _timeout_sentence(process, limits):
        return sentence
    if expected is not None:
        return f"Expected: '{expected}', Got: '{answer['stdout'].strip()}'"
    return f"Exit code: {answer['exit_code']}"


def clipped(result: dict[str, Any], room: int) -> dict[str, Any]:
    """A test case's result with at most *room* characters of output, and marked when that cuts it."""
    if len(result["stdout"]) + len(result["stderr"]) <= room:
        return result
    stdout = result["stdout"][:room]
    message = result["error_message"]
    return {
        **result,
        "stdout": stdout,
        "actual_output": stdout,
        "stderr": result["stderr"][: room - len(stdout)],
        "error_message": None if message is None else message[: max(room, 200)],
        "truncated": True,
    }


def from_cases(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The answer around the results of all test cases."""
    return {
        "stdout": "".join(f"=== Test Case: {r['name']} ===\n{r['stdout']}\n" for r in results),
        "stderr": "".join(f"=== Test Case: {r['name']} (stderr) ===\n{r['stderr']}\n" for r in results if r["stderr"]),
        "exit_code": 0 if all(r["passed"] for r in results) else 1,
        "time_taken": None,
        "memory_used": None,
        "test_results": list(results),
        "outcome": None,
        "truncated": any(r["truncated"] for r in results),
    }


def outcome_label(result: RunResult) -> str:
    """The outcome as the metrics name it."""
    if result.process is None:
        return "compile_error"
    match result.process.outcome:
        case Outcome.WALL_TIME | Outcome.CPU_TIME:
            return "timeout"
        case Outcome.MEMORY:
            return "memory"
        case Outcome.OUTPUT:
            return "output_limit"
        case Outcome.CANCELLED:
            return "cancelled"
        case Outcome.LOST:
            return "error"
    return "ok" if result.process.succeeded else "nonzero"


def repeatable(outcomes: Iterable[str | None]) -> bool:
    """Whether an answer with these outcomes is the program's own doing, not the time's or the host's."""
    ours = {Outcome.WALL_TIME, Outcome.CPU_TIME, Outcome.CANCELLED, Outcome.LOST}
    return ours.isdisjoint(outcomes)


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _with_line(text: str, line: str) -> str:
    """*line* below *text*."""
    if not text or not line:
        return text or line
    return f"{text}{line}" if text.endswith("\n") else f"{text}\n{line}"


def _timeout_sentence(process: ProcessResult, limits: Limits) -> str:
    match process.outcome:
        case Outcome.WALL_TIME:
            return f"Execution timed out after {limits.wall_s:.3f} seconds"
        case Outcome.CPU_TIME:
            return f"Execution timed out after {limits.cpu_s:.3f} seconds"
    return ""
