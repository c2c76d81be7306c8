"""The documentation says what the code does."""

import re
from pathlib import Path

import pytest
import typer

from stockade.cli import app
from stockade.cli.reference import pages

ROOT = Path(__file__).parent.parent
PAGES = pages()


@pytest.mark.parametrize("name", PAGES)
def test_pages_written_from_the_code_are_up_to_date(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == PAGES[name], "run `make docs` and commit what it wrote"


@pytest.mark.parametrize(
    "command", [one.name or one.callback.__name__ for one in app.registered_commands if one.callback]
)
def test_the_readme_names_every_command(command: str) -> None:
    assert f"stockade {command}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_command_and_option_has_help() -> None:
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", ""), f"{name} {parameter.name}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "deploy/README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_every_dependency_is_explained() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    extras = project["project"]["optional-dependencies"]
    wanted = [
        *project["project"]["dependencies"],
        *(one for name, group in extras.items() if name != "all" for one in group),
        *(one for group in project["dependency-groups"].values() for one in group if isinstance(one, str)),
    ]
    for requirement in wanted:
        name = re.split(r"[\[<>=]", requirement)[0]
        assert re.search(rf"^\| `{re.escape(name)}` \|", text, re.MULTILINE), f"{name} is missing"
