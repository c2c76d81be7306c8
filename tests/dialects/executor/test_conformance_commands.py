"""`/run` and `/run_streaming`: cases 6 to 24 of the contract, and what it says around them."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.app.traces import until
from tests.dialects.executor.serving import Executor, is_text, outputs

COMPLETE = {"code": 0, "error": False}

long = pytest.mark.skipif(os.environ.get("STOCKADE_LONG_TESTS") != "1", reason="takes a while; STOCKADE_LONG_TESTS=1")


def test_06_run_answers_with_the_output(executor: Executor) -> None:
    assert executor.run("echo hi") == {"stdout": "hi\n", "stderr": "", "code": 0}


def test_07_a_code_that_is_not_zero_is_an_error(executor: Executor) -> None:
    assert executor.run("exit 42") == {"stdout": "", "stderr": "", "code": 42, "error": "Non-zero exit code"}


def test_08_the_streams_are_apart(executor: Executor) -> None:
    assert executor.run("echo o; echo e >&2") == {"stdout": "o\n", "stderr": "e\n", "code": 0}


def test_09_an_unknown_command_is_the_shell_s_to_tell(executor: Executor) -> None:
    done = executor.run("no_such_cmd_x")
    assert (done["code"], done["error"]) == (127, "Non-zero exit code")
    assert done["stderr"].startswith("sh: ")
    assert done["stderr"].endswith("no_such_cmd_x: not found\n")


@pytest.mark.parametrize("number", [9, 15, 11])
def test_10_a_shell_that_a_signal_ended_has_code_minus_one(executor: Executor, number: int) -> None:
    assert executor.run(f"echo before; kill -{number} $$")["code"] == -1
    assert executor.streamed(f"kill -{number} $$")[-1].data == {"code": -1, "error": True}


def test_10_a_child_that_a_signal_ended_is_the_shell_s_to_tell(executor: Executor) -> None:
    assert executor.run("sh -c 'kill -9 $$'; exit $?")["code"] == 137


def test_11_directory_and_environment(executor: Executor) -> None:
    done = executor.run("echo $K; pwd; echo $PATH", cwd="/tmp", env={"K": "v"})
    assert done["stdout"].startswith("v\n/tmp\n/")


@pytest.mark.parametrize("value", ["", " ", "a=b", "l1\nl2", "\u00e4\u4e2d", "'\"$`\\", "x" * 100_000])
def test_11_values_of_the_environment_are_passed_as_they_are(executor: Executor, value: str) -> None:
    assert executor.run('printf %s "$K"', env={"K": value})["stdout"] == value


def test_11_a_relative_directory_is_one_of_the_server_s_own(executor: Executor) -> None:
    own = executor.stdout("pwd").strip()
    assert executor.run("pwd", cwd="") == {"stdout": f"{own}\n", "stderr": "", "code": 0}
    assert executor.run("pwd", cwd="..")["stdout"].strip() == executor.stdout("cd ..; pwd").strip()


def test_11_no_state_survives(executor: Executor) -> None:
    before = executor.stdout("pwd")
    executor.run("cd /; X=1; export X")
    assert executor.stdout("pwd; echo $X") == f"{before}\n"


@pytest.mark.parametrize("path", ["/run", "/run_streaming", "/start_process"])
@pytest.mark.parametrize("cwd", ["/no/such", "/etc/passwd", "no-such", "/etc/passwd/x"])
def test_12_a_directory_that_is_none(executor: Executor, path: str, cwd: str) -> None:
    assert is_text(executor.post(path, {"cmd": "pwd", "cwd": cwd}), 400, f"Invalid working directory: {cwd}")


@pytest.mark.parametrize("cmd", ["", "  ", "\n", "# nothing"])
def test_13_an_empty_script_succeeds(executor: Executor, cmd: str) -> None:
    assert executor.run(cmd) == {"stdout": "", "stderr": "", "code": 0}
    assert [event.data for event in executor.streamed(cmd)] == [COMPLETE]


def test_13_no_command_is_an_empty_one(executor: Executor) -> None:
    assert executor.reply("/run", {}) == {"stdout": "", "stderr": "", "code": 0}
    with executor.stream("POST", "/run_streaming", {}) as stream:
        assert [event.data for event in stream] == [COMPLETE]


def test_13_standard_input_is_at_its_end(executor: Executor) -> None:
    assert executor.run("cat") == {"stdout": "", "stderr": "", "code": 0}
    assert [event.data for event in executor.streamed("cat")] == [COMPLETE]


@pytest.mark.parametrize(
    ("printed", "text"),
    [
        ("a\\377b", "a\ufffdb"),
        ("\\342\\202", "\ufffd\ufffd"),
        ("\\342\\202x", "\ufffd\ufffdx"),
        ("\\355\\240\\200", "\ufffd\ufffd\ufffd"),
        ("\\303\\244", "\u00e4"),
        ("\\0", "\0"),
    ],
)
def test_14_bytes_that_are_no_text_are_replaced_one_by_one(executor: Executor, printed: str, text: str) -> None:
    assert executor.run(f"printf '{printed}'")["stdout"] == text
    assert outputs(executor.streamed(f"printf '{printed}'")) == [("stdout", text)]


def test_15_ten_megabytes_are_all_there(executor: Executor) -> None:
    done = executor.run("head -c 10000000 /dev/zero | tr '\\0' x")
    assert (len(done["stdout"]), done["stdout"].strip("x"), done["code"]) == (10_000_000, "", 0)


def test_15_much_on_standard_error_blocks_nothing(executor: Executor) -> None:
    done = executor.run("head -c 300000 /dev/zero | tr '\\0' x >&2; echo done")
    assert (done["stdout"], len(done["stderr"]), done["code"]) == ("done\n", 300_000, 0)


def test_15_both_streams_may_say_much_at_once(executor: Executor) -> None:
    done = executor.run("for i in 1 2 3 4 5 6 7 8; do seq 1 20000; seq 1 20000 >&2; done")
    assert len(done["stdout"]) == len(done["stderr"]) == 8 * len("".join(f"{n}\n" for n in range(1, 20_001)))


@long
def test_15_a_hundred_megabytes_are_all_there(executor: Executor) -> None:
    """What the reference's own example checks."""
    done = executor.run("head -c 100000000 /dev/zero | tr '\\0' x")
    assert (len(done["stdout"]), done["stdout"].strip("x"), done["code"]) == (100_000_000, "", 0)


def test_16_commands_run_beside_each_other(executor: Executor) -> None:
    begun = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda n: executor.run(f"sleep 0.5; echo {n}"), range(8)))
    assert [one["stdout"] for one in done] == [f"{n}\n" for n in range(8)]
    assert time.monotonic() - begun < 3.5  # one after the other they would take 4 s


def test_17_output_is_streamed_in_the_order_in_which_it_came(executor: Executor) -> None:
    events = executor.streamed("echo a; sleep 0.2; echo b >&2; sleep 0.2; printf c")
    assert outputs(events) == [("stdout", "a"), ("stderr", "b"), ("stdout", "c")]
    assert events[-1].data == COMPLETE


def test_17_what_comes_at_short_intervals_is_in_order_too(executor: Executor) -> None:
    events = executor.streamed("for i in 1 2 3 4 5 6 7 8; do echo o$i; sleep 0.01; echo e$i >&2; sleep 0.01; done")
    assert [text for _, text in outputs(events)] == [f"{kind}{n}" for n in range(1, 9) for kind in "oe"]


def test_18_a_code_that_is_not_zero_completes_with_an_error(executor: Executor) -> None:
    events = executor.streamed("exit 3")
    assert [(event.name, event.data) for event in events] == [("complete", {"code": 3, "error": True})]


@pytest.mark.parametrize(
    ("printed", "lines"),
    [
        ("a\\r\\nb\\n\\n\\n", ["a", "b", "", ""]),
        ("a\\r\\r\\n", ["a"]),
        ("a\\rb\\n", ["a\rb"]),
        ("\\n", [""]),
        ("\\r\\n", [""]),
        ("tail", ["tail"]),
        ("tail\\r", ["tail"]),
        ("a\\n\\ntail", ["a", "", "tail"]),
        ("a\\fb\\013c\\n", ["a\fb\vc"]),
    ],
)
def test_19_lines_end_at_line_feeds_only(executor: Executor, printed: str, lines: list[str]) -> None:
    assert [text for _, text in outputs(executor.streamed(f"printf '{printed}'"))] == lines


def test_20_a_line_is_sent_when_it_is_there(executor: Executor) -> None:
    first, second, _ = executor.streamed("echo 1; sleep 0.6; echo 2")
    assert second.at - first.at >= 0.4


def test_20_a_part_of_a_line_waits_for_its_rest(executor: Executor) -> None:
    events = executor.streamed("printf a; sleep 0.2; echo b; printf c; sleep 0.2; printf d")
    assert [text for _, text in outputs(events)] == ["ab", "cd"]


def test_21_a_line_may_be_long(executor: Executor) -> None:
    events = executor.streamed("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo after")
    (_, long), (_, after) = outputs(events)
    assert (len(long), long.strip("x"), after) == (3_000_000, "", "after")


@long
def test_21_a_line_may_have_a_hundred_megabytes(executor: Executor) -> None:
    ((_, text),) = outputs(executor.streamed("head -c 100000000 /dev/zero | tr '\\0' x"))
    assert (len(text), text.strip("x")) == (100_000_000, "")


def test_22_many_lines_are_in_order(executor: Executor) -> None:
    assert [text for _, text in outputs(executor.streamed("seq 1 20000"))] == [str(n) for n in range(1, 20_001)]


def test_23_what_other_readers_take_for_line_ends_is_escaped(executor: Executor) -> None:
    """`Event` are ASCII, or `Stream` would have failed."""
    events = executor.streamed("printf 'a\\302\\205b\\342\\200\\250c\\342\\200\\251d\\n'")
    assert outputs(events) == [("stdout", "a\x85b\u2028c\u2029d")]


@pytest.mark.parametrize("path", ["/run", "/run_streaming"])
def test_24_a_client_that_leaves_ends_its_command(executor: Executor, path: str) -> None:
    """With all that it has started, also when it says nothing, and what has a session of its own."""
    number = f"60.{time.monotonic_ns()}"
    request = executor.request("POST", path, {"cmd": f"setsid sleep {number}1 & sleep {number}2; echo x"})
    with executor.connect() as connection:
        connection.sendall(request)
        until(lambda: executor.runs(f"sleep {number}1") and executor.runs(f"sleep {number}2"))
    until(lambda: not any(number in line for line in executor.commands()))


def test_24_a_client_that_leaves_within_its_output_ends_its_command(executor: Executor) -> None:
    number = f"61.{time.monotonic_ns()}"
    with executor.stream("POST", "/run_streaming", {"cmd": f"sleep {number} & yes"}) as stream:
        assert next(iter(stream)).data == {"stream": "stdout", "data": "y"}
    until(lambda: not executor.runs(f"sleep {number}") and not executor.runs("yes"))


def test_the_answer_waits_for_whoever_holds_the_output(executor: Executor) -> None:
    begun = time.monotonic()
    assert executor.run("(sleep 0.5; echo late) & echo x")["stdout"] == "x\nlate\n"
    assert time.monotonic() - begun >= 0.5


@pytest.mark.parametrize("path", ["/run", "/run_streaming"])
@pytest.mark.parametrize(
    "body",
    [{"cmd": "echo \0"}, {"cmd": "true", "env": {"A": "\0"}}, {"cmd": "true", "env": {"A": "x" * 200_000}},
     {"cmd": "#" + "x" * 200_000}],
    ids=["NUL in the command", "NUL in the environment", "long environment", "long command"],
)  # fmt: skip
def test_what_cannot_be_started_is_no_server_s_fault(executor: Executor, path: str, body: dict[str, object]) -> None:
    """Clients repeat what is answered with 5xx."""
    response = executor.post(path, body)
    assert response.status_code in (200, 400)
    if path == "/run":
        assert is_text(response, 400, "Failed to start command")
    else:
        assert response.status_code == 400 or '"error"' in response.text


def test_a_time_limit_ends_the_command(executor: Executor) -> None:
    """What the command line client sends."""
    number = f"62.{time.monotonic_ns()}"
    done = executor.run(f"echo begun; sleep {number}; echo x", timeout=1.5)
    assert (done["stdout"], done["code"]) == ("begun\n", -1)
    assert "1.5" in done["error"]
    until(lambda: not executor.runs(f"sleep {number}"))
    assert executor.run("echo quick", timeout=30)["code"] == 0
