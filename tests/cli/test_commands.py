"""The command line: what it prints, and its exit status."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stockade import __version__
from stockade.cli.serve import parse_listen
from tests.app.serving import command, environment

Stockade = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def stockade(tmp_path: Path) -> Stockade:
    """Runs a command in a directory of its own."""

    def run(*arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command(*arguments),
            env=environment(STOCKADE_DATA_DIR=str(tmp_path / "data")),
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_run_prints_the_program_s_output_and_has_its_status(stockade: Stockade) -> None:
    code = "import sys; print(6*7); print('oops', file=sys.stderr); sys.exit(7)"
    done = stockade("run", "-c", code)
    assert (done.stdout, done.stderr, done.returncode) == ("42\n", "oops\n", 7)


def test_run_guesses_the_language_of_a_file(stockade: Stockade, tmp_path: Path) -> None:
    (tmp_path / "hello.sh").write_text('echo "$1 from $0"')
    done = stockade("run", "hello.sh", "hello")
    assert done.returncode == 0
    assert done.stdout.startswith("hello from")


def test_run_takes_a_program_from_standard_input(stockade: Stockade) -> None:
    assert stockade("run", "-", "--language", "python", stdin="print(1)").stdout == "1\n"
    assert stockade("run", "-", stdin="print(1)").returncode == 2


def test_run_passes_arguments_and_input_on(stockade: Stockade) -> None:
    code = "import sys; print(sys.argv[1:], sys.stdin.read())"
    assert stockade("run", "-c", code, "--stdin", "text", "--", "a b", "--json").stdout == "['a b', '--json'] text\n"
    assert stockade("run", "-c", code, "--stdin", "-", stdin="piped").stdout == "[] piped\n"
    assert stockade("run", "-c", code, stdin="not meant for it").stdout == "[] \n"


@pytest.mark.parametrize(
    ("options", "code", "status", "message"),
    [
        (["--timeout", "300ms"], "while True: pass", 124, "wall-clock limit (0.3 s"),
        (["--memory", "64MiB"], "x = b'x' * 2**28; print(len(x))", 137, "memory limit (64 MiB"),
        ([], "import os\nwhile True: os.write(1, b'x' * 65536)", 137, "output limit (1 MiB"),
        ([], "import os; os.kill(os.getpid(), 10)", 138, ""),
    ],
)
def test_run_tells_a_limit_by_status_and_one_line(
    stockade: Stockade, options: list[str], code: str, status: int, message: str
) -> None:
    done = stockade("run", *options, "-c", code)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_run_takes_a_template_of_the_configuration(stockade: Stockade, tmp_path: Path) -> None:
    (tmp_path / "stockade.toml").write_text('[templates.science]\npreload = ["json"]\n')
    done = stockade("run", "--config", "stockade.toml", "--template", "science", "-c", "print(1)")
    assert (done.stdout, done.returncode) == ("1\n", 0)
    done = stockade("run", "--config", "stockade.toml", "--template", "art", "-c", "print(1)")
    assert (done.stdout, done.returncode) == ("", 2)
    assert "unknown template 'art' for python; known: none, python, science" in done.stderr


def test_a_configured_template_that_cannot_be_is_told_by_its_key(stockade: Stockade, tmp_path: Path) -> None:
    (tmp_path / "stockade.toml").write_text('[templates.science]\nlanguage = "c"\n')
    done = stockade("run", "--config", "stockade.toml", "-c", "print(1)")
    assert done.returncode == 2
    assert "templates.science.language: c has no template" in done.stderr


def test_run_gives_json_to_scripts(stockade: Stockade) -> None:
    done = stockade("run", "--json", "-c", "print('π'); import sys; sys.exit(3)")
    result = json.loads(done.stdout)
    assert (result["process"]["stdout"], result["process"]["outcome"], result["exit_status"]) == ("π\n", "exited", 3)
    assert result["process"]["memory_peak_bytes"] > 0
    assert done.returncode == 3


def test_run_reports_a_compiler_s_messages_as_errors(stockade: Stockade) -> None:
    done = stockade("run", "-l", "c", "-c", "int main({")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "main.c" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-l", "klingon", "-c", "x"], "unknown language 'klingon'; known: "),
        (["missing.py"], "missing.py: No such file or directory"),
        (["-c", "1", "--timeout", "0"], "greater than zero"),
        (["-c", "1", "--timeout", "soon"], 'must be a duration like "10s"'),
        (["-c", "1", "--memory", "1TiB"], "must not be above"),
        (["-c", "1", "--config", "missing.toml"], "missing.toml: cannot be read"),
        ([], "name a FILE"),
    ],
)
def test_run_says_what_is_wrong_with_a_request(stockade: Stockade, arguments: list[str], message: str) -> None:
    done = stockade("run", *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_run_loads_no_web_framework() -> None:
    program = (
        "import sys\n"
        "from stockade.cli import app\n"
        "try: app(['run', '-c', 'print(1)'])\n"
        "except SystemExit: pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'fastapi', 'starlette', 'uvicorn', 'httpx'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "1\n[]\n"


def test_languages_are_listed_with_what_is_missing(stockade: Stockade) -> None:
    rows = json.loads(stockade("languages", "--json").stdout)
    by_name = {row["name"]: row for row in rows}
    assert by_name["python"]["available"]
    assert all(row["packages"] for row in rows if row["name"] in ("go", "ruby", "haskell"))
    table = stockade("languages").stdout
    assert "python, py" in table


def test_doctor_says_what_is_enforced_and_its_status_whether_that_is_enough(stockade: Stockade) -> None:
    done = stockade("doctor", "--json")
    report = json.loads(done.stdout)
    assert report["features"]
    missing = [one for one in report["features"] if not one["enforced"] and one["required"]]
    lacking = [one for one in missing if not one["allowed_without"]]
    assert {"disk_size", "pausing"} <= {one["name"] for one in report["features"]} or "sandboxes" in str(lacking)
    assert done.returncode == (1 if lacking else 0)
    assert report["ok"] == (not lacking)
    assert all(one["remedy"] for one in report["features"] if not one["enforced"])
    table = stockade("doctor").stdout
    assert all(one["name"] in table for one in report["features"])


def test_version_is_that_of_the_package(stockade: Stockade) -> None:
    assert stockade("version").stdout == f"stockade {__version__}\n"
    assert json.loads(stockade("version", "--json").stdout)["stockade"] == __version__


def test_a_pipe_that_closes_early_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", '"$@" | true', "-", *command("languages", "--json")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""


@pytest.mark.parametrize("value", ["isobox", "=127.0.0.1:1", "isobox="])
def test_a_dialect_s_address_has_a_name_and_a_place(value: str) -> None:
    import typer

    with pytest.raises(typer.BadParameter):
        parse_listen([value])


def test_a_dialect_has_one_address() -> None:
    import typer

    assert parse_listen(["a=h:1", "b=h:2"]) == {"a": "h:1", "b": "h:2"}
    with pytest.raises(typer.BadParameter):
        parse_listen(["a=h:1", "a=h:2"])
