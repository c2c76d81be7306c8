"""Where settings come from, which win, and what is refused."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.config import Config, ConfigError, TemplateConfig, describe, is_loopback, load, parse_address, setting
from stockade.settings import parse_duration, parse_size, show_size

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A dialect's settings."""

    rate: int = setting(0, env=("RATE_LIMIT_PER_MINUTE",), at_least=0, help="Requests a minute.")
    token: str = setting("", secret=True, help="A secret.")


DIALECTS = {"sample": Sample, "code-sandbox": Sample, "plain": None}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "stockade.toml"


def test_without_anything_the_server_is_on_loopback_and_demands_no_more(tmp_path: Path) -> None:
    config = load(environ={"STOCKADE_DATA_DIR": str(tmp_path)})
    assert config == replace(Config(), data_dir=tmp_path)
    assert is_loopback(config.server.host)
    assert not config.server.insecure


def test_options_win_over_the_environment_and_that_over_the_file(file: Path) -> None:
    file.write_text('[server]\nport = 1\nhost = "127.0.0.2"\n[queue]\nlength = 1\nplaces = 1\n')
    config = load(
        file=file,
        environ={"STOCKADE_SERVER_PORT": "2", "STOCKADE_QUEUE_PLACES": "2"},
        options={"server.port": 3, "server.host": None},
    )
    assert (config.server.port, config.server.host) == (3, "127.0.0.2")
    assert (config.queue.places, config.queue.length) == (2, 1)


def test_a_setting_s_own_variable_wins_over_its_other_names() -> None:
    assert load(environ={"PORT": "8000"}).server.port == 8000
    assert load(environ={"PORT": "8000", "STOCKADE_SERVER_PORT": "9000"}).server.port == 9000


def test_the_data_directory_s_file_is_found(file: Path) -> None:
    file.write_text("[server]\nport = 4711\n")
    assert load(environ={"STOCKADE_DATA_DIR": str(file.parent)}).server.port == 4711
    assert load(environ={}, options={"data_dir": file.parent}).server.port == 4711


def test_limits_are_set_one_by_one(file: Path) -> None:
    file.write_text('[sandbox.defaults]\nmemory_bytes = "64MiB"\nwall_s = "1500ms"\n')
    config = load(file=file, environ={"STOCKADE_SANDBOX_MAXIMUM_WALL_S": "2m"})
    assert config.sandbox.defaults.memory_bytes == 64 * MIB
    assert config.sandbox.defaults.wall_s == 1.5
    assert config.sandbox.defaults.processes == Config().sandbox.defaults.processes
    assert config.sandbox.maximum.wall_s == 120


def test_dialects_settings_come_from_file_and_environment(file: Path) -> None:
    file.write_text('[dialects.code-sandbox]\ntoken = "t"\n')
    config = load(
        file=file,
        environ={"RATE_LIMIT_PER_MINUTE": "5", "STOCKADE_DIALECTS_CODE_SANDBOX_RATE": "7"},
        dialects=DIALECTS,
    )
    assert config.dialects == {"sample": Sample(rate=5), "code-sandbox": Sample(rate=7, token="t")}


def test_templates_are_named_by_the_file_and_by_the_environment(file: Path) -> None:
    file.write_text(
        '[templates.science]\npreload = ["numpy", "a.b"]\n[templates.plain]\n[templates.a-b]\nimage = "x"\n'
    )
    config = load(
        file=file,
        environ={
            "STOCKADE_TEMPLATES_SCIENCE_LANGUAGE": "python",
            "STOCKADE_TEMPLATES_A_B_IMAGE": "y",
            "STOCKADE_TEMPLATES_WEB_PRELOAD": "flask,jinja2",
        },
    )
    assert config.templates == {
        "science": TemplateConfig(language="python", preload=("numpy", "a.b")),
        "plain": TemplateConfig(),
        "a-b": TemplateConfig(image="y"),
        "web": TemplateConfig(preload=("flask", "jinja2")),
    }
    assert load(environ={}).templates == {}


def test_a_misspelt_variable_of_a_template_is_refused() -> None:
    with pytest.raises(ConfigError, match="STOCKADE_TEMPLATES_WEB_PRELAOD: no such setting"):
        load(environ={"STOCKADE_TEMPLATES_WEB_PRELAOD": "flask"})


def test_a_command_that_serves_nothing_ignores_dialects_settings(file: Path) -> None:
    file.write_text("[dialects.isobox]\nanything = 1\n")
    assert load(file=file, environ={"STOCKADE_DIALECTS_ISOBOX_ANYTHING": "1"}).dialects == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nprot = 1", r"stockade\.toml: server\.prot: no such setting; did you mean server\.port\?"),
        ("[servre]\nport = 1", "servre: no such setting"),
        ("server = 1", r"server: must be a table \(\[server\]\)"),
        ("[server]\nport = true", "server.port: must be a whole number"),
        ("[server]\nport = 70000", "at most 65535"),
        ('[server]\nhost = ["a"]', "must be a string"),
        ("[server]\ntrusted_hosts = [1]", "must be a list of strings"),
        ('[server.listen]\nisobox = "8000"', r"server\.listen: isobox: must be HOST:PORT"),
        ('[log]\nformat = "xml"', "must be one of auto, console, json"),
        ('[log]\nlevel = "loud"', "must be error, warning, info or debug"),
        ("[queue]\nplaces = 0", "must be at least 1"),
        ("[queue]\nwait_s = nan", "must be a number of seconds"),
        ("[sandbox.defaults]\nwall_s = inf", "must be a number of seconds"),
        ("[sandbox.defaults]\nmemory_bytes = 0", "must be greater than zero"),
        ('[sandbox.defaults]\nmemory_bytes = "1XB"', 'must be a size like "128MiB"'),
        ('[sandbox.defaults]\nmemory_bytes = "1TiB"', r"is above sandbox\.maximum\.memory_bytes"),
        ('[server]\napi_key = "short"', "at least 16 characters"),
        ("[server\n", "is not TOML"),
        ("[dialects.sampel]\nrate = 1", r"did you mean dialects\.sample"),
        ("templates = 1", r"templates: must be a table of tables"),
        ("[templates]\nscience = 1", r"templates\.science: must be a table \(\[templates\.science\]\)"),
        ("[templates.Science]", r"templates: a name is lower-case letters, digits and hyphens \(got 'Science'\)"),
        ('[templates.a]\npreloads = ["x"]', r"did you mean templates\.a\.preload\?"),
        ('[templates.a]\npreload = ["x", "os; y"]', r"stockade\.toml: templates\.a\.preload: 'os; y' is no name"),
        ("[templates.a]\npreload = [1]", r"templates\.a\.preload: must be a list of strings"),
        (f"[templates.a]\npreload = {['x'] * 65}", r"templates\.a\.preload: must be at most 64 modules"),
        ("[sandbox]\ntemplates = 1", "templates: must be true or false"),
    ],
)
def test_a_mistake_in_the_file_is_named(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load(file=file, environ={}, dialects=DIALECTS)
    assert str(file) in str(caught.value)


def test_a_mistake_in_the_environment_is_named() -> None:
    with pytest.raises(ConfigError, match="STOCKADE_SANDBOX_DEFAULT_WALL_S: no such setting; did you mean"):
        load(environ={"STOCKADE_SANDBOX_DEFAULT_WALL_S": "1"})
    with pytest.raises(ConfigError, match="environment variable PORT: must be a whole number"):
        load(environ={"PORT": "http"})


def test_variables_that_may_belong_to_others_are_left_alone() -> None:
    assert load(environ={"STOCKADE_PORT": "tcp://10.0.0.1:80", "STOCKADE_SERVER_PORT": ""}).server.port == 8080


def test_a_missing_file_that_was_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(environ={"STOCKADE_CONFIG": str(tmp_path / "none.toml")})


def test_secrets_are_in_no_repr_and_no_message(file: Path) -> None:
    config = load(environ={"STOCKADE_API_KEY": "0123456789abcdef"})
    assert config.server.api_key == "0123456789abcdef"
    assert "0123456789abcdef" not in repr(config)
    file.write_text("[server]\napi_key = 123456")
    with pytest.raises(ConfigError) as caught:
        load(file=file, environ={})
    assert "123456" not in str(caught.value)


def test_lowering_a_maximum_alone_is_allowed() -> None:
    assert load(environ={"STOCKADE_SANDBOX_MAXIMUM_WALL_S": "1"}).sandbox.maximum.wall_s == 1


@pytest.mark.parametrize("text", ["warn", "info,hyper=debug", "tower=warn,error", "TRACE"])
def test_log_levels_of_the_rust_world_are_understood(text: str) -> None:
    assert load(environ={"RUST_LOG": text}).log.level in ("warning", "info", "error", "debug")


def test_every_setting_has_help_and_a_name_of_its_own() -> None:
    settings = list(describe(DIALECTS))
    names = [one.env[0] for one in settings]
    assert len(set(names)) == len(names)
    for one in settings:
        assert one.help.endswith("."), one.key
        assert one.kind


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("1k", 1024), ("1KB", 1000), ("128MiB", 128 * MIB), ("1.5 GiB", 1536 * MIB), ("2g", 2048 * MIB)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "seconds"), [("1", 1), ("500ms", 0.5), ("2m", 120), ("1h", 3600), ("0.5s", 0.5)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@given(st.integers(min_value=0, max_value=2**50))
def test_a_size_that_is_shown_reads_back(size: int) -> None:
    assert parse_size(show_size(size)) == size


@given(st.text(max_size=12))
def test_no_text_makes_a_reader_fail_otherwise_than_by_refusing(text: str) -> None:
    for reader in (parse_size, parse_duration, parse_address):
        try:
            reader(text)
        except ValueError:
            pass


@pytest.mark.parametrize(
    ("text", "address"), [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:80", ("::1", 80)), ("a.b:0", ("a.b", 0))]
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "80", ":80", "::1:80", "a:", "a:99999", "a:-1", "[::1]", "a:b:80"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_address(text)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_loopback_addresses_are_told_from_others(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
