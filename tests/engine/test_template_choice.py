"""Templates: what a language's file says of them, which one a run gets, and what the backend is told."""

import asyncio
from collections.abc import Mapping

import pytest

from stockade.backends.base import Report, SandboxSpec
from stockade.config import CacheConfig, ConfigError, SandboxConfig, TemplateConfig
from stockade.engine import Compilations, Language, Languages, LimitPolicy, Queue, Runs, Templates, Toolchains
from stockade.engine.language_files import read_language
from stockade.engine.templates import UnknownTemplate
from stockade.errors import Invalid, Unavailable
from stockade.model import (
    Actor,
    LimitOverrides,
    Outcome,
    ProcessResult,
    ProcessSpec,
    RunSpec,
    Template,
    TemplateKind,
    Usage,
)

FORK = Template(kind=TemplateKind.FORK)
ANN = Actor(id="ann")
COLD = Actor(id="cold", templates=False)
MIB = 1024 * 1024

PYTHON = """
name = "python"
display_name = "Python 3"
aliases = ["py"]
main_file = "main.py"
requires = ["python3"]
run.argv = ["python3", "{main}"]
template.kind = "fork"
examples.hello.code = ""
"""
POOL = PYTHON.replace('"fork"', '"pool"')
NODE = """
name = "node"
display_name = "Node"
main_file = "main.js"
requires = ["node"]
run.argv = ["node", "--heap={memory_mb*50%}", "{main}"]
examples.hello.code = ""

[template]
kind = "pool"
boot = ["node", "--heap={memory_mb*50%}", "-r", "/dev/shm/boot.js", "{main}"]
[template.files]
"/dev/shm/boot.js" = "if (1) {args}"
"""
C = """
name = "c"
display_name = "C"
main_file = "main.c"
requires = ["cc"]
compile.argv = ["cc", "{main}"]
run.argv = ["./a.out", "{args}"]
examples.hello.code = ""
"""


class Remembering:
    """A backend that runs nothing and remembers what it was asked for."""

    def __init__(self) -> None:
        self.ran: list[tuple[SandboxSpec, ProcessSpec]] = []
        self.warmed: list[tuple[SandboxSpec, ProcessSpec]] = []
        self.error: Exception | None = None

    async def start(self) -> None:
        pass

    async def run(self, sandbox: SandboxSpec, process: ProcessSpec, *, watched: object = None) -> ProcessResult:
        self.ran.append((sandbox, process))
        usage = Usage(wall_s=0.0, cpu_user_s=0.0, cpu_system_s=0.0, memory_peak_bytes=0)
        return ProcessResult(
            outcome=Outcome.EXITED, exit_code=0, signal=None, stdout=b"", stderr=b"",
            stdout_truncated=False, stderr_truncated=False, usage=usage,
        )  # fmt: skip

    async def warm(self, sandbox: SandboxSpec, process: ProcessSpec) -> None:
        self.warmed.append((sandbox, process))
        if self.error is not None:
            raise self.error

    async def report(self) -> Report:
        return Report(backend="remembering", features=(), details={})

    async def close(self) -> None:
        pass


def read(text: str, name: str) -> tuple[Language, ...]:
    return read_language(text, source=f"{name}.toml", name=name)


def languages(installed: tuple[str, ...] = ("python3", "node", "cc")) -> Languages:
    texts = {"python": PYTHON, "node": NODE, "c": C}
    return Languages([read(text, name) for name, text in texts.items()], which=lambda _, wanted: wanted in installed)


def runs(
    backend: Remembering,
    configured: Mapping[str, TemplateConfig] | None = None,
    *,
    enabled: bool = True,
    installed: tuple[str, ...] = ("python3", "node", "cc"),
) -> Runs:
    known = languages(installed)
    limits = LimitPolicy(defaults=SandboxConfig().defaults, maximum=SandboxConfig().maximum)
    return Runs(
        languages=known,
        limits=limits,
        queue=Queue(places=1, length=1, wait_s=1.0, places_per_actor=None),
        backend=backend,
        compilations=Compilations(most_bytes=0, most_entries=1, shared=CacheConfig().compilations_shared),
        toolchains=Toolchains(store=None, limits=limits, run=backend.run, work_dir="/code"),
        templates=Templates(known, configured, enabled=enabled),
    )


def begun(
    configured: Mapping[str, TemplateConfig] | None = None,
    *,
    language: str = "python",
    template: str | None = None,
    actor: Actor = ANN,
    enabled: bool = True,
) -> tuple[SandboxSpec, ProcessSpec]:
    """What the backend is asked for when such a run comes to its last step."""
    backend = Remembering()
    spec = RunSpec(language=language, code="", args=("a", "{main}"), template=template)
    asyncio.run(runs(backend, configured, enabled=enabled).run(actor, spec))
    return backend.ran[-1]


# -- the language's file


def test_a_fork_template_needs_its_kind_alone() -> None:
    assert read(PYTHON, "python")[0].template == FORK
    assert read(C, "c")[0].template is None


def test_a_pool_s_command_knows_the_limits_and_its_files_are_taken_as_they_are() -> None:
    language = read(NODE, "node")[0]
    limits = LimitPolicy(defaults=SandboxConfig().defaults, maximum=SandboxConfig().maximum).resolve(
        language.limits, LimitOverrides(memory_bytes=100 * MIB)
    )
    template = language.template_for(limits)
    assert template is not None
    assert template.kind is TemplateKind.POOL
    assert template.boot == ("node", "--heap=50", "-r", "/dev/shm/boot.js", "main.js")
    assert template.files == (("/dev/shm/boot.js", "if (1) {args}"),)


def test_each_variant_has_the_file_s_template_or_its_own() -> None:
    text = PYTHON.replace('requires = ["python3"]', "") + '[[variants]]\nrequires = ["python3"]\n'
    other = text + '[[variants]]\nrequires = ["pypy3"]\ntemplate = {kind = "pool", boot = ["pypy3"]}\n'
    assert [one.template and one.template.kind for one in read(text, "python")] == [TemplateKind.FORK]
    assert [one.template and one.template.kind for one in read(other, "python")] == [
        TemplateKind.FORK,
        TemplateKind.POOL,
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PYTHON.replace('"fork"', '"spoon"'), r"python\.toml: template\.kind: must be 'fork' or 'pool'"),
        (PYTHON.replace("template.kind", "template.sort"), r"template\.kind: is missing"),
        (PYTHON.replace('template.kind = "fork"', "template = 1"), "template: must be a table"),
        (PYTHON + 'template.boot = ["python3"]', r"template\.boot: unknown key"),
        (PYTHON.replace('"{main}"]', '"{args}", "{main}"]'), "template: needs a .run. to which arguments are added"),
        (POOL, r"template\.boot: is missing"),
        (POOL + 'template.boot = ["x", "{args}"]', "only the run step has"),
        (POOL + 'template.boot = ["x", "{memory}"]', "unknown placeholder '{memory}'"),
        (POOL + 'template.boot = ["x"]\ntemplate.files."a/b" = ""', "must be absolute"),
        (POOL + 'template.boot = ["x"]\ntemplate.files."/a" = ""', "below a top-level"),
        (POOL + 'template.boot = ["x"]\ntemplate.files."/a/../b" = ""', "must be absolute"),
        (POOL + 'template.boot = ["x"]\ntemplate.files."/a/b" = 1', "must be a string"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_template_is_named(text: str, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        read(text, "python")


def test_python_has_a_template() -> None:
    assert Languages.load().find("python").template == FORK


# -- the choice


def test_a_run_begins_from_its_language_s_template_with_its_arguments_apart() -> None:
    _, process = begun()
    assert process.template == FORK
    assert (process.argv, process.args) == (("python3", "main.py"), ("a", "{main}"))


def test_a_language_without_a_template_has_its_arguments_where_its_file_puts_them() -> None:
    _, process = begun(language="c")
    assert process.template is None
    assert (process.argv, process.args) == (("./a.out", "a", "{main}"), ())


@pytest.mark.parametrize(
    ("members", "preload"),
    [
        ({}, ("json",)),
        ({"template": "python"}, ("json",)),
        ({"template": "science"}, ("numpy", "pandas")),
        ({"template": "plain"}, ()),
        ({"template": "none"}, None),
        ({"actor": COLD}, None),
        ({"actor": COLD, "template": "science"}, None),
        ({"enabled": False}, None),
        ({"enabled": False, "template": "science"}, None),
    ],
)
def test_request_key_and_server_choose_together(members: dict[str, object], preload: tuple[str, ...] | None) -> None:
    configured = {
        "python": TemplateConfig(preload=("json",)),
        "science": TemplateConfig(language="py", preload=("numpy", "pandas")),
        "plain": TemplateConfig(),
    }
    _, process = begun(configured, **members)  # type: ignore[arg-type]
    assert (process.template and process.template.preload) == preload
    if process.template is None:
        assert process.argv == ("python3", "main.py", "a", "{main}")


@pytest.mark.parametrize("enabled", [True, False])
def test_a_template_s_image_counts_also_where_nothing_is_begun_from_it(enabled: bool) -> None:
    configured = {"science": TemplateConfig(image="debian")}
    assert begun(configured, enabled=enabled)[0].image == "host"
    assert begun(configured, enabled=enabled, template="science")[0].image == "debian"


@pytest.mark.parametrize(
    ("language", "template", "known"),
    [
        ("python", "sience", ("none", "python", "science")),
        ("python", "node", ("none", "python", "science")),
        ("node", "science", ("none", "node")),
        ("c", "c", ("none",)),
        ("python", "", ("none", "python", "science")),
    ],
)
def test_an_unknown_template_is_refused_with_those_that_there_are(
    language: str, template: str, known: tuple[str, ...]
) -> None:
    backend = Remembering()
    some = runs(backend, {"science": TemplateConfig(preload=("numpy",))})
    with pytest.raises(UnknownTemplate) as refused:
        asyncio.run(some.run(ANN, RunSpec(language=language, code="", template=template)))
    assert (refused.value.known, refused.value.language) == (known, language)
    assert backend.ran == []


def test_none_is_known_to_every_language() -> None:
    assert begun(language="c", template="none")[1].template is None


@pytest.mark.parametrize(
    ("name", "one", "message"),
    [
        ("none", TemplateConfig(), "templates.none: requests say 'none'"),
        ("x", TemplateConfig(language="cobol"), r"templates\.x\.language: unknown language 'cobol'"),
        ("x", TemplateConfig(language="c"), "c has no template"),
        ("c", TemplateConfig(), "c has no template"),
        ("py", TemplateConfig(), "templates.py: is another name of python; call it 'python'"),
        ("node", TemplateConfig(language="python"), "must be 'node'"),
        ("x", TemplateConfig(language="node", preload=("fs",)), r"templates\.x\.preload: node cannot import ahead"),
    ],
)
def test_a_template_that_cannot_be_is_refused_at_the_start(name: str, one: TemplateConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Templates(languages(), {name: one})


def test_an_image_is_not_for_a_language_that_is_compiled_in_its_own() -> None:
    text = NODE.replace("run.argv", 'compile.argv = ["tsc"]\nrun.argv')
    with pytest.raises(ConfigError, match="image: node is compiled in its language's image"):
        Templates(Languages([read(text, "node")]), {"x": TemplateConfig(language="node", image="debian")})


# -- what is announced


def test_what_is_announced_is_what_a_run_asks_for() -> None:
    backend = Remembering()
    some = runs(backend, {"science": TemplateConfig(preload=("numpy",)), "js": TemplateConfig(language="node")})
    asyncio.run(some.announce())
    assert len(backend.warmed) == 3
    for template, language, announced in zip(
        (None, "science", "js"), ("python", "python", "node"), backend.warmed, strict=True
    ):
        asyncio.run(some.run(ANN, RunSpec(language=language, code="x = 1", stdin=b"x", args=("1",), template=template)))
        ran = backend.ran[-1]
        assert ran[0] == announced[0]
        assert (ran[1].argv, ran[1].env, ran[1].cwd, ran[1].template) == (
            announced[1].argv, announced[1].env, announced[1].cwd, announced[1].template,
        )  # fmt: skip


def test_a_configured_default_is_announced_once_and_other_defaults_are_not() -> None:
    backend = Remembering()
    asyncio.run(runs(backend, {"python": TemplateConfig(preload=("json",))}).announce())
    assert [process.template and process.template.preload for _, process in backend.warmed] == [("json",)]


def test_what_is_not_installed_or_switched_off_is_not_announced() -> None:
    backend = Remembering()
    asyncio.run(runs(backend, {"js": TemplateConfig(language="node")}, installed=("node",)).announce())
    assert [process.argv[0] for _, process in backend.warmed] == ["node"]
    backend = Remembering()
    asyncio.run(runs(backend, {"js": TemplateConfig(language="node")}, enabled=False).announce())
    assert backend.warmed == []


def test_a_template_that_cannot_be_announced_keeps_no_other_from_it() -> None:
    backend = Remembering()
    backend.error = Unavailable("later")
    asyncio.run(runs(backend, {"science": TemplateConfig(preload=("numpy",))}).announce())
    assert len(backend.warmed) == 2
