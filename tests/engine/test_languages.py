"""Languages as data: the files, the look-up, and every language for real."""

import asyncio
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.backends.base import SandboxSpec
from stockade.config import SandboxConfig
from stockade.engine import Engine, LimitPolicy
from stockade.engine.language_files import read_language
from stockade.engine.languages import RECHECK_S, HostCommands, Language, Languages
from stockade.errors import Invalid, LanguageUnavailable, UnknownLanguage
from stockade.model import Actor, Limits, Outcome, ProcessResult, ProcessSpec, RunSpec, Usage

MIB = 1024 * 1024
LIMITS = SandboxConfig().defaults

# isobox's keys with the name of the main file: a client sees both.
ISOBOX = {
    "python": "main.py", "python2": "main.py", "node": "main.js", "typescript": "main.ts", "php": "main.php",
    "ruby": "main.rb", "perl": "main.pl", "bash": "main.sh", "lua": "main.lua", "r": "main.r", "octave": "main.m",
    "dart": "main.dart", "groovy": "main.groovy", "prolog": "main.pl", "basic": "main.bas", "clojure": "main.clj",
    "elixir": "main.exs", "common-lisp": "main.lisp", "erlang": "main.erl", "go": "main.go", "csharp": "Program.cs",
    "fsharp": "Program.fs", "vbnet": "Program.vb", "sql": "main.sql", "c": "main.c", "cpp": "main.cpp",
    "rust": "main.rs", "java": "Main.java", "kotlin": "Main.kt", "scala": "Main.scala", "swift": "main.swift",
    "haskell": "main.hs", "ocaml": "main.ml", "d": "main.d", "fortran": "main.f90", "pascal": "main.pas",
    "assembly": "main.asm", "cobol": "main.cob", "objective-c": "main.m",
}  # fmt: skip

ALIASES = [
    ("py", "python"), ("python3", "python"), ("js", "node"), ("javascript", "node"), ("nodejs", "node"),
    ("ts", "typescript"), ("sh", "bash"), ("c++", "cpp"), ("cs", "csharp"), ("c#", "csharp"), ("golang", "go"),
    ("rs", "rust"), ("rb", "ruby"), ("pl", "perl"), ("hs", "haskell"), ("ml", "ocaml"), ("kt", "kotlin"),
    ("sqlite", "sql"), ("Python", "python"), ("C++", "cpp"), ("GoLang", "go"), ("PL", "perl"),
]  # fmt: skip

TOY = """
name = "toy"
display_name = "Toy"
aliases = ["plaything"]
extensions = [".toy"]
main_file = "main.toy"
packages = ["toy-bin"]
requires = ["toy"]

[run]
argv = ["toy", "--heap={memory_mb*60%}", "{main}"]

[version]
argv = ["toy", "--version"]
pattern = 'toy (\\S+)'

[examples.hello]
code = "hello"
"""

VARIANTS = """
name = "toy"
display_name = "Toy"
main_file = "main.toy"

[[variants]]
requires = ["toy9"]
packages = ["toy-nine"]
run.argv = ["toy9", "{main}"]

[[variants]]
requires = ["toy8"]
packages = ["toy-eight"]
run.argv = ["toy8", "{main}"]

[examples.hello]
code = "hello"
"""

SHIPPED = Languages.load()


def load(directory: Path, text: str, *, name: str = "toy", installed: Iterable[str] = ()) -> Languages:
    """Our own languages and one in *directory*; of all commands, *installed* are there."""
    (directory / f"{name}.toml").write_text(text, "utf-8")
    return Languages.load([directory], which=lambda image, requirement: requirement in installed)


def variants_of(directory: Path, text: str, which: Callable[[str, str], bool], clock: Callable[[], float]) -> Languages:
    return Languages([read_language(text, source="toy.toml", name="toy")], which=which, clock=clock)


def printed(stdout: bytes) -> ProcessResult:
    usage = Usage(wall_s=0.1, cpu_user_s=0.1, cpu_system_s=0.0, memory_peak_bytes=MIB)
    return ProcessResult(
        outcome=Outcome.EXITED,
        exit_code=0,
        signal=None,
        stdout=stdout,
        stderr=b"",
        stdout_truncated=False,
        stderr_truncated=False,
        usage=usage,
    )


# -- the files that come with Stockade


@pytest.mark.parametrize(("name", "main_file"), ISOBOX.items())
def test_every_isobox_key_is_a_language_with_its_main_file(name: str, main_file: str) -> None:
    assert (SHIPPED.find(name).name, SHIPPED.find(name).main_file) == (name, main_file)


@pytest.mark.parametrize("name", ["tcl", "awk", "zig"])
def test_languages_beyond_isobox_are_known(name: str) -> None:
    assert SHIPPED.find(name).name == name


@pytest.mark.parametrize(("alias", "name"), ALIASES)
def test_an_alias_finds_its_language_in_any_letter_case(alias: str, name: str) -> None:
    assert SHIPPED.find(alias).name == name


@pytest.mark.parametrize("language", SHIPPED.all(), ids=lambda language: language.name)
def test_every_language_shows_hello_stdin_and_a_failing_compilation(language: Language) -> None:
    assert {"hello", "stdin"} <= language.examples.keys()
    if language.compile is not None:
        assert any(not example.compiles for example in language.examples.values())


def test_the_packages_that_tests_install_bring_at_least_sixteen_languages() -> None:
    listed = Path(__file__).parents[1].joinpath("system-packages.txt").read_text("utf-8").split("\n")
    packages = {line.strip() for line in listed if line.strip() and not line.startswith("#")}
    covered = [language.name for language in SHIPPED.all() if language.packages and packages >= set(language.packages)]
    assert len(covered) >= 16, covered


def test_nothing_of_the_callers_reaches_a_shell() -> None:
    """Where a step uses a shell, its line is fixed: it neither takes the arguments in nor a placeholder."""
    for language in SHIPPED.all():
        for step in filter(None, (language.compile, language.run)):
            if step.argv[0] in ("sh", "bash") and "-c" in step.argv:
                assert step is language.compile
                assert "{" not in step.argv[step.argv.index("-c") + 1]


# -- looking up


def test_an_unknown_language_names_the_known_ones() -> None:
    with pytest.raises(UnknownLanguage) as refused:
        SHIPPED.find("klingon")
    assert "klingon" in str(refused.value)
    assert set(ISOBOX) <= set(refused.value.known)


@given(st.sampled_from([s for language in SHIPPED.all() for s in (language.name, *language.aliases)]), st.data())
def test_letter_case_makes_no_difference(spelling: str, data: st.DataObject) -> None:
    upper = data.draw(st.lists(st.booleans(), min_size=len(spelling), max_size=len(spelling)))
    mixed = "".join(c.upper() if up else c.lower() for c, up in zip(spelling, upper, strict=True))
    assert SHIPPED.find(mixed).name == SHIPPED.find(spelling).name


def test_an_uninstalled_language_names_its_packages(tmp_path: Path) -> None:
    languages = load(tmp_path, TOY)
    assert languages.find("toy").name == "toy"
    assert not languages.is_available("toy")
    with pytest.raises(LanguageUnavailable, match="toy-bin"):
        languages.available("plaything")


def test_the_first_variant_that_is_installed_is_in_force(tmp_path: Path) -> None:
    assert load(tmp_path, VARIANTS, installed=["toy8", "toy9"]).available("toy").run.argv == ("toy9", "main.toy")
    assert load(tmp_path, VARIANTS, installed=["toy8"]).available("toy").run.argv == ("toy8", "main.toy")
    assert load(tmp_path, VARIANTS).find("toy").packages == ("toy-nine",)


def test_a_runtime_that_is_installed_later_appears_without_a_restart() -> None:
    now, installed, looks = 0.0, set[str](), 0

    def which(image: str, requirement: str) -> bool:
        nonlocal looks
        looks += 1
        return requirement in installed

    languages = variants_of(Path(), TOY, which, lambda: now)
    assert not languages.is_available("toy")
    installed.add("toy")
    assert not languages.is_available("toy")
    assert looks == 1
    now += RECHECK_S
    assert languages.is_available("toy")


@pytest.mark.parametrize(
    ("file", "installed", "name"),
    [
        ("prog.py", {"python3"}, "python"),
        ("dir.rb/prog.toy", set(), "toy"),
        ("prog.pl", {"perl", "swipl"}, "perl"),
        ("prog.pl", {"swipl"}, "prolog"),
        ("prog.pro", {"perl", "swipl"}, "prolog"),
        ("prog.m", {"octave-cli"}, "octave"),
    ],
)
def test_a_file_name_tells_its_language(tmp_path: Path, file: str, installed: set[str], name: str) -> None:
    assert load(tmp_path, TOY, installed=installed).guess(file).name == name


@pytest.mark.parametrize("file", ["prog", "prog.unheard", "", ".py/", "prog.m"])
def test_a_file_name_that_tells_nothing_or_too_much_is_refused(tmp_path: Path, file: str) -> None:
    with pytest.raises(Invalid, match="name the language"):
        load(tmp_path, TOY).guess(file)


# -- what a host holds


def test_a_command_counts_only_when_the_sandbox_can_follow_its_links(tmp_path: Path) -> None:
    shown, hidden = tmp_path / "shown", tmp_path / "hidden"
    for directory in (shown, hidden):
        directory.mkdir()
        (directory / "tool").touch(mode=0o755)
    (shown / "leads-out").symlink_to(hidden / "tool")
    host = HostCommands([str(shown)])
    assert host("host", "sh")
    assert not host("host", "no-such-command")
    assert host("host", f"{shown}/to*")
    assert not host("host", f"{shown}/leads-out")
    assert not host("host", f"{hidden}/tool")


def test_only_host_paths_that_exist_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "there")
    for name in ("there", "linked", "missing"):
        paths = f'host_paths = ["{tmp_path}/{name}"]\n'
        text = TOY.replace('"toy"', f'"toy-{name}"', 1).replace('"plaything"', "")
        (tmp_path / f"toy-{name}.toml").write_text(text.replace("\n[run]", f"{paths}\n[run]"), "utf-8")
    languages = Languages.load([tmp_path], which=lambda image, requirement: True)
    assert f"{tmp_path}/there" in languages.host_paths()
    assert not {f"{tmp_path}/linked", f"{tmp_path}/missing"} & set(languages.host_paths())
    assert languages.is_available("toy-there")
    assert not languages.is_available("toy-missing")


# -- commands


def limits(**changed: float) -> Limits:
    return Limits(**{**vars(LIMITS), **changed})


def test_placeholders_follow_the_limits_in_force(tmp_path: Path) -> None:
    run = load(tmp_path, TOY).find("toy").run
    assert run.command(limits(memory_bytes=512 * MIB)) == ("toy", "--heap=307", "main.toy")
    assert run.command(limits(memory_bytes=1)) == ("toy", "--heap=1", "main.toy")


def test_arguments_stand_where_the_file_says(tmp_path: Path) -> None:
    text = TOY.replace('"{main}"]', '"{args}", "{main}"]')
    assert load(tmp_path, text).find("toy").run.command(LIMITS, ["a", "b"])[2:] == ("a", "b", "main.toy")


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"))), st.integers(1, 1 << 45))
def test_arguments_arrive_as_they_are_and_change_nothing_else(args: list[str], memory_bytes: int) -> None:
    for language in SHIPPED.all():
        bare = language.run.command(limits(memory_bytes=memory_bytes))
        words = language.run.command(limits(memory_bytes=memory_bytes), args)
        start = language.run.argv.index("{args}") if "{args}" in language.run.argv else len(bare)
        assert list(words[start : start + len(args)]) == args
        assert words[:start] + words[start + len(args) :] == bare


def test_the_environment_is_built_from_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SERVER", "1")
    go = SHIPPED.find("go")
    env = go.environment(go.run, limits(cpus=1.5))
    assert env["GOMAXPROCS"] == "2"
    assert env["HOME"] == "/home/user"
    assert "SECRET_OF_THE_SERVER" not in env


# -- files that say something wrong


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('name = "toy"', 'name = "tyo"', "name"),
        ('display_name = "Toy"\n', "", "display_name: is missing"),
        ('display_name = "Toy"', "display_name = 5", "display_name: must be a string"),
        ('main_file = "main.toy"', 'main_file = "../main.toy"', "main_file"),
        ('main_file = "main.toy"', 'main_file = "/main.toy"', "main_file"),
        ('main_file = "main.toy"', 'main_file = "main.toy"\ncolour = "red"', "colour: unknown key"),
        ('requires = ["toy"]\n', "", "requires: is missing"),
        ('requires = ["toy"]', 'requires = ["toy; id"]', "requires"),
        ('aliases = ["plaything"]', 'aliases = "plaything"', "aliases: must be an array"),
        ('aliases = ["plaything"]', "aliases = [5]", "aliases"),
        ('extensions = [".toy"]', 'extensions = ["toy"]', "extensions"),
        ('packages = ["toy-bin"]', 'packages = ["--purge"]', "packages"),
        ('["toy", "--heap={memory_mb*60%}", "{main}"]', "[]", "run.argv: must hold a command"),
        ("{memory_mb*60%}", "{memory*60%}", "run.argv: unknown placeholder"),
        ("{memory_mb*60%}", "{memory_mb*0%}", "run.argv: the share"),
        ("{memory_mb*60%}", "{args}", "run.argv: {args} must stand alone"),
        ("[version]", "env = { 'A=B' = '1' }\n[version]", "run.env.A=B"),
        ("[version]", "env = { A = 1 }\n[version]", "run.env.A: must be a string"),
        ("[version]", "[compile]\nargv = ['toyc', '{args}']\n[version]", "compile.argv"),
        ("[version]", "[limits]\nmemory = 5\n[version]", "limits.memory: unknown limit"),
        ("[version]", "[limits]\nmemory_mb = 0\n[version]", "limits.memory_mb"),
        ("[version]", "[limits]\nmemory_mb = true\n[version]", "limits.memory_mb"),
        ("[version]", "[limits]\nmemory_mb = 0.5\n[version]", "limits.memory_mb: must be a whole number"),
        ("[version]", "[limits]\nwall_s = inf\n[version]", "limits.wall_s"),
        ("[version]", "[files]\n'main.toy' = ''\n[version]", "files"),
        ("[version]", "[files]\n'../x' = ''\n[version]", "files"),
        ("pattern = 'toy (\\S+)'", "pattern = '('", "version.pattern: not a regular expression"),
        ("pattern = 'toy (\\S+)'", "pattern = 'toy'", "version.pattern: must have one group"),
        ("[examples.hello]", "[examples.bye]", "examples.hello: is missing"),
        ('code = "hello"', 'code = "hello"\ncompiles = false', "examples: compiles is false"),
        ('code = "hello"', 'code = "hello"\nexit_code = "0"', "examples.hello.exit_code: must be a whole number"),
        ("\n[run]", "host_paths = ['/var']\n[run]", "host_paths"),
        ("\n[run]", "host_paths = ['/proc/self']\n[run]", "host_paths"),
        ("\n[run]", "minimum_version = 'nine'\n[run]", "minimum_version"),
        ("\n[run]", "variants = 5\n[run]", "variants: must be tables"),
        ("\n[run]", "[[variants]]\nname = 'x'\n[run]", "variants: a variant cannot have 'name'"),
        ("[run]", "[run", "not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_key(tmp_path: Path, old: str, new: str, key: str) -> None:
    assert old in TOY
    with pytest.raises(Invalid) as refused:
        load(tmp_path, TOY.replace(old, new, 1))
    assert str(tmp_path / "toy.toml") in str(refused.value)
    assert key in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('main_file = "main.toy"', 'main_file = "main.toy"\ncolour = "red"'),
        ("[version]", "colour = 'red'\n[version]"),
        ("[version]", "[limits]\ncolour = 5\n[version]"),
        ("{memory_mb*60%}", "{colour}"),
        ("pattern =", "colour = 5\npattern ="),
        ('code = "hello"', 'code = "hello"\ncolour = 5'),
    ],
)
def test_the_page_explains_every_key_that_a_file_may_hold(tmp_path: Path, old: str, new: str) -> None:
    """The error about a key nobody knows lists those that are known: each is on the page."""
    page = Path(__file__).parents[2].joinpath("docs", "languages.md").read_text("utf-8")
    with pytest.raises(Invalid) as refused:
        load(tmp_path, TOY.replace(old, new, 1))
    known = str(refused.value).partition("known")[2].partition(": ")[2].split(", ")
    assert known
    assert [key for key in known if not re.search(rf"\b{key}\b", page)] == []


def test_a_directory_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no-such"):
        Languages.load([tmp_path / "no-such"])
    (tmp_path / "toy.toml").write_bytes(b"\xff")
    with pytest.raises(Invalid, match="cannot be read"):
        Languages.load([tmp_path])


def test_two_languages_cannot_share_a_name_in_any_letter_case(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"'python'.*'toy'|'toy'.*'python'"):
        load(tmp_path, TOY.replace("plaything", "PY"))


def test_an_operators_file_replaces_ours_of_the_same_name(tmp_path: Path) -> None:
    text = TOY.replace('"toy"', '"lua"', 1).replace("plaything", "moon")
    languages = load(tmp_path, text, name="lua")
    assert languages.find("lua").display_name == "Toy"
    assert languages.find("moon").name == "lua"


# -- versions


@pytest.mark.anyio
async def test_versions_are_asked_once_and_put_a_variant_with_a_minimum_into_force() -> None:
    """Two callers at once cost one probe for each installed variant; the answer decides which variant runs."""
    text = VARIANTS.replace('["toy-nine"]', '["toy-nine"]\nminimum_version = "9.2"\nversion.argv = ["toy9", "-V"]')
    asked: list[ProcessSpec] = []

    async def run(sandbox: SandboxSpec, process: ProcessSpec) -> ProcessResult:
        asked.append(process)
        await asyncio.sleep(0)
        return printed(b"\n9.10.1\n")

    languages = variants_of(Path(), text, lambda image, requirement: True, lambda: 0.0)
    policy = LimitPolicy(defaults=LIMITS, maximum=SandboxConfig().maximum)
    assert languages.available("toy").run.argv[0] == "toy8"
    both = await asyncio.gather(languages.versions(run, policy), languages.versions(run, policy))
    assert both == [{"toy": "9.10.1"}] * 2
    assert [process.argv for process in asked] == [("toy9", "-V")]
    assert languages.available("toy").run.argv[0] == "toy9"


@pytest.mark.anyio
async def test_every_installed_runtime_tells_its_version(engine: Engine) -> None:
    versions = await engine.languages.versions(engine.runs.backend.run, engine.limits)
    installed = {language.name for language in engine.languages.all() if engine.languages.is_available(language.name)}
    assert versions.keys() == installed
    assert versions["python"].startswith("3.")
    silent = {name for name, version in versions.items() if not version}
    assert silent <= {"awk"}, "their runtimes are installed, but no version was found"


# -- every language for real


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "example"), [(language.name, example) for language in SHIPPED.all() for example in language.examples]
)
async def test_a_language_does_what_its_examples_say(engine: Engine, name: str, example: str) -> None:
    """Hello, standard input, arguments, an exit status, a failing compilation: each in a sandbox of its own."""
    try:
        language = engine.languages.available(name)
    except LanguageUnavailable as missing:
        packages = ", ".join(missing.packages) or "none in Debian 12"
        pytest.skip(f"{name} is not installed (Debian package: {packages})")
    if example not in language.examples:
        pytest.skip(f"the variant of {name} in force compiles nothing")
    wanted = language.examples[example]
    spec = RunSpec(language=name, code=wanted.code, stdin=wanted.stdin.encode(), args=wanted.args)
    result = await engine.runs.run(Actor(id="tests"), spec)
    told = f"{result.last.outcome}: {result.last.stderr.decode(errors='replace')[-2000:]}"
    if wanted.compiles:
        assert result.process is not None, told
        assert (result.process.outcome, result.process.exit_code) == (Outcome.EXITED, wanted.exit_code), told
        assert result.process.stdout.decode() == wanted.stdout
    else:
        assert result.process is None
        assert result.last.outcome is Outcome.EXITED, told
        assert result.last.exit_code != 0
        assert result.last.stderr, "what the compiler says belongs on standard error"
