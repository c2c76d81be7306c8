"""The reference's environment variables as settings of ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.config import ConfigError, load
from stockade.dialects.code_sandbox.settings import CodeSandboxSettings
from stockade.dialects.code_sandbox.variables import VARIABLES, translate_environment

PREFIX = "STOCKADE_DIALECTS_CODE_SANDBOX_"


def translated(**environ: str) -> dict[str, str]:
    found, messages = translate_environment(environ)
    assert messages == [], messages
    return found


@pytest.mark.parametrize(
    ("name", "text", "variable", "value"),
    [
        ("SANDBOX_TIMEOUT", "1500ms", f"{PREFIX}TIMEOUT_S", "1.5"),
        ("SANDBOX_TIMEOUT", " 2s ", f"{PREFIX}TIMEOUT_S", "2"),
        ("SANDBOX_TIMEOUT", "1ns", f"{PREFIX}TIMEOUT_S", "0.000000001"),
        ("SANDBOX_MAX_TIMEOUT", "2m", f"{PREFIX}MAX_TIMEOUT_S", "120"),
        ("HTTP_WRITE_TIMEOUT", "20s", f"{PREFIX}WRITE_TIMEOUT_S", "20"),
        ("HTTP_READ_TIMEOUT", "5s", "STOCKADE_SERVER_BODY_TIMEOUT_S", "5"),
        ("HTTP_SHUTDOWN_TIMEOUT", "15s", "STOCKADE_SERVER_DRAIN_S", "15"),
        ("JOB_TTL", "48h", "STOCKADE_JOBS_RETENTION_S", "172800"),
        ("JOB_TTL", "0", "STOCKADE_JOBS_RETENTION_S", "0"),
        ("REDIS_ADDR", "cache:6380", "STOCKADE_JOBS_REDIS_URL", "redis://cache:6380/0"),
        ("REDIS_ADDR", "cache", "STOCKADE_JOBS_REDIS_URL", "redis://cache:6379/0"),
        ("REDIS_PASSWORD", "p@:/", "STOCKADE_JOBS_REDIS_URL", "redis://:p%40%3A%2F@redis:6379/0"),
        ("REDIS_DB", "3", "STOCKADE_JOBS_REDIS_URL", "redis://redis:6379/3"),
        ("HTTP_PORT", "9000", "STOCKADE_SERVER_LISTEN", "code-sandbox=0.0.0.0:9000"),
    ],
)
def test_a_variable_is_a_setting_of_ours(name: str, text: str, variable: str, value: str) -> None:
    assert translated(**{name: text}) == {variable: value}


@pytest.mark.parametrize("name", VARIABLES)
def test_a_variable_that_is_empty_counts_as_not_set(name: str) -> None:
    assert translated(**{name: ""}) == {}


@pytest.mark.parametrize("name", ["SANDBOX_TIMEOUT", "SANDBOX_MAX_TIMEOUT", "HTTP_READ_TIMEOUT", "JOB_TTL"])
@pytest.mark.parametrize("text", ["abc", "3", "-1s"])
def test_a_duration_that_is_none_falls_back_to_the_default_and_is_told(name: str, text: str) -> None:
    found, (message,) = translate_environment({name: text})
    assert found == {}
    assert name in message
    assert repr(text) in message


@pytest.mark.parametrize("text", ["0", "-3s"])
def test_a_default_time_that_is_not_above_zero_acts_as_three_seconds(text: str) -> None:
    found, (message,) = translate_environment({"SANDBOX_TIMEOUT": text})
    assert found == {}
    assert "3s is used" in message


@pytest.mark.parametrize(
    ("name", "text", "default"), [("REDIS_DB", "x", "0"), ("REDIS_DB", "\u0661", "0"), ("HTTP_PORT", "x", "8080")]
)
def test_a_number_that_is_none_falls_back_to_the_default_and_is_told(name: str, text: str, default: str) -> None:
    found, messages = translate_environment({name: text})
    assert any(name in message and f"{default} is used" in message for message in messages)
    assert all(default in value for variable, value in found.items() if variable != "STOCKADE_SERVER_PORT")


@pytest.mark.parametrize("port", ["0", "65536", "-1", "99999999999"])
def test_a_port_that_is_none_refuses_the_start(port: str) -> None:
    with pytest.raises(ConfigError, match="HTTP_PORT"):
        translate_environment({"HTTP_PORT": port})


def test_the_usual_port_goes_to_this_dialect_and_the_merged_server_moves_away() -> None:
    found, (message,) = translate_environment({"HTTP_HOST": "127.0.0.1"})
    assert found == {"STOCKADE_SERVER_LISTEN": "code-sandbox=127.0.0.1:8080", "STOCKADE_SERVER_PORT": "8000"}
    assert "8000" in message
    assert translated(HTTP_HOST="::1", PORT="8100") == {"STOCKADE_SERVER_LISTEN": "code-sandbox=[::1]:8080"}


def test_other_dialects_addresses_are_kept_and_our_own_wins() -> None:
    assert translated(HTTP_PORT="9000", STOCKADE_SERVER_LISTEN="isobox=127.0.0.1:8000") == {
        "STOCKADE_SERVER_LISTEN": "isobox=127.0.0.1:8000,code-sandbox=0.0.0.0:9000"
    }
    assert translated(HTTP_PORT="9000", STOCKADE_SERVER_LISTEN="code-sandbox=127.0.0.1:1") == {}


def test_a_setting_s_own_variable_wins() -> None:
    assert translated(SANDBOX_TIMEOUT="2s", STOCKADE_DIALECTS_CODE_SANDBOX_TIMEOUT_S="4s") == {}
    assert translated(REDIS_ADDR="a:1", REDIS_URL="redis://b:2/0") == {}


def test_runners_become_places_of_their_language() -> None:
    text = " Go: a | b ,golang:b|c,,js:d, python : e "
    found, (message,) = translate_environment({"SANDBOX_LANGUAGE_CONTAINERS": text})
    assert found == {"STOCKADE_JOBS_POOLS": "go=3,node=1,python=1"}
    assert "3 of go" in message
    found, messages = translate_environment({"SANDBOX_LANGUAGE_CONTAINERS": "ruby:a,py:b"})
    assert found == {"STOCKADE_JOBS_POOLS": "python=1"}
    assert any("ruby" in message for message in messages)


@pytest.mark.parametrize("text", ["golang", "=python:", "python:", ":a", "python:|", "python:a,js"])
def test_runners_that_are_malformed_refuse_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match="SANDBOX_LANGUAGE_CONTAINERS"):
        translate_environment({"SANDBOX_LANGUAGE_CONTAINERS": text})


@pytest.mark.parametrize(
    "name",
    [
        "SANDBOX_CONTAINER",
        "SANDBOX_JOB_DIR",
        "SANDBOX_CONTAINER_JOB_DIR",
        "SANDBOX_DOCKER_BIN",
        "SANDBOX_DOCKER_USER",
        "SANDBOX_NETWORK",
    ],
)
def test_what_means_nothing_here_is_answered_with_what_replaces_it(name: str) -> None:
    found, (message,) = translate_environment({name: "x"})
    assert found == {}
    assert message.startswith(f"{name} has no effect: ")


def test_a_longer_time_raises_what_the_server_allows() -> None:
    found, (message,) = translate_environment({"SANDBOX_MAX_TIMEOUT": "2h"})
    assert found[f"{PREFIX}MAX_TIMEOUT_S"] == "7200"
    assert found["STOCKADE_SANDBOX_MAXIMUM_WALL_S"] == found["STOCKADE_SANDBOX_MAXIMUM_CPU_S"] == "7200"
    assert "2h0m0s" in message


def test_an_origin_that_is_named_is_let_in_and_any_is_not() -> None:
    found, (message,) = translate_environment({"CORS_ORIGIN": "https://example.org"})
    assert found["STOCKADE_SERVER_CORS_ALLOWED_ORIGINS"] == "https://example.org"
    assert found["STOCKADE_SERVER_CORS_ENABLED"] == "true"
    assert "https://example.org" in message
    assert translated(CORS_ORIGIN="*") == translated(CORS_ORIGIN="https://a", CORS_ENABLED="false") == {}


@given(
    st.dictionaries(
        st.sampled_from(VARIABLES),
        st.text(alphabet="0123456789abcgopythn:|,.-sm ", max_size=12) | st.sampled_from(["1s", "go:a", "9000", "a:1"]),
        max_size=6,
    )
)
def test_whatever_is_translated_is_a_configuration_that_loads(environ: dict[str, str]) -> None:
    try:
        found, _messages = translate_environment(environ)
    except ConfigError:
        return
    if "HTTP_HOST" in environ:
        found.pop("STOCKADE_SERVER_LISTEN", None)  # any text may be a host's name here; the listener says if it is none
    load(environ=found, dialects={"code-sandbox": CodeSandboxSettings})
