"""What the warden accepts as a template, and when a run fits one."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.warden.recipe import FORK, POOL, Recipe
from stockade.warden.request import Refused, RunRequest
from tests.warden.raw import LIMITS, request
from tests.warden.test_request import NEVER, anything

SIZES = ("memory_bytes", "processes", "disk_bytes", "disk_inodes", "open_files", "stack_bytes")


def message(**changes: Any) -> dict[str, Any]:
    """A template that is in order, apart from *changes*."""
    return {
        "op": "template",
        "id": 1,
        "kind": FORK,
        "image": "host",
        "argv": ["python3", "main.py"],
        "env": {"PATH": "/usr/bin:/bin"},
        "cwd": "/code",
        **{name: LIMITS[name] for name in SIZES},
        **changes,
    }


def test_a_template_in_order_is_taken_as_it_is() -> None:
    recipe = Recipe.parse(message(preload=["numpy", "a.b"]))
    assert (recipe.argv, recipe.preload, recipe.boot, recipe.files) == (
        ("python3", "main.py"),
        ("numpy", "a.b"),
        (),
        (),
    )
    assert {name: getattr(recipe, name) for name in SIZES} == {name: LIMITS[name] for name in SIZES}


def test_equal_ones_are_the_same() -> None:
    """Templates are kept by their recipe: one for all that ask for the same."""
    assert Recipe.parse(message()) == Recipe.parse(message(op="else", announce=True))
    assert len({Recipe.parse(message()), Recipe.parse(message()), Recipe.parse(message(cwd="/x"))}) == 2


@pytest.mark.parametrize("kind", [FORK, POOL])
def test_what_is_sent_on_comes_out_as_it_went_in(kind: str) -> None:
    changes = {"boot": ["node", "-x"], "files": {"/tmp/a": "text"}} if kind == POOL else {"preload": ["json"]}
    recipe = Recipe.parse(message(kind=kind, **changes))
    assert Recipe.of_message(recipe.to_message()) == recipe


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kind": "clone"}, "kind"),
        ({"kind": None}, "kind"),
        ({"kind": []}, "kind"),
        ({"argv": []}, "argv"),
        ({"argv": "python3"}, "argv"),
        ({"argv": ["a\0"]}, "argv"),
        ({"env": None}, "env"),
        ({"env": {"A=B": ""}}, "env"),
        ({"cwd": "code"}, "cwd"),
        ({"cwd": "/code/../etc"}, "cwd"),
        ({"preload": "numpy"}, "preload"),
        ({"preload": ["numpy;import os"]}, "preload"),
        ({"preload": ["a/b"]}, "preload"),
        ({"preload": ["a b"]}, "preload"),
        ({"preload": [""]}, "preload"),
        ({"preload": ["a..b"]}, "preload"),
        ({"preload": ["a\n"]}, "preload"),
        ({"preload": ["m"] * 65}, "preload"),
        ({"kind": POOL}, "boot"),
        ({"kind": POOL, "boot": []}, "boot"),
        ({"kind": POOL, "boot": ["x"], "files": []}, "files"),
        ({"kind": POOL, "boot": ["x"], "files": {"relative": ""}}, "files"),
        ({"kind": POOL, "boot": ["x"], "files": {"/a/../../b": ""}}, "files"),
        ({"kind": POOL, "boot": ["x"], "files": {"/a": 1}}, "files"),
        ({"kind": POOL, "boot": ["x"], "files": {"/a": "\ud800"}}, "files"),
        ({"kind": POOL, "boot": ["x"], "files": {f"/{n}": "" for n in range(17)}}, "files"),
    ],
    ids=lambda value: str(value)[:40].encode("ascii", "backslashreplace").decode(),
)
def test_a_wrong_member_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(Refused, match=named) as refused:
        Recipe.parse(message(**changes))
    assert refused.value.kind == "invalid"


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", NEVER, ids=repr)
def test_sizes_that_limit_nothing_are_refused(name: str, value: Any) -> None:
    with pytest.raises(Refused, match=name):
        Recipe.parse(message(**{name: value}))


@given(st.data())
def test_whatever_stands_for_a_member_is_taken_or_refused(data: st.DataObject) -> None:
    """No other exception: any other would be the warden's. What is taken can be kept and sent on."""
    changed = copy.deepcopy(message(preload=[], boot=["x"], files={}))
    changed[data.draw(st.sampled_from(sorted(changed)))] = data.draw(anything)
    try:
        recipe = Recipe.parse(changed)
    except Refused:
        return
    assert {recipe: 1}[Recipe.of_message(recipe.to_message())] == 1


# ── runs from one ────────────────────────────────────────────────────────────────────────────────────────────────────


def parse(recipe: Recipe, **changes: Any) -> RunRequest:
    return RunRequest.parse(request(1, **changes), 1, recipe)


def test_a_run_has_its_templates_command_and_environment_whatever_it_says() -> None:
    recipe = Recipe.parse(message(env={"A": "1"}, cwd="/there"))
    parsed = parse(recipe, image="else", env={"B": "2"}, cwd="/here", args=["x", "y"])
    assert parsed.argv == ("python3", "main.py", "x", "y")
    assert (parsed.image, parsed.env, parsed.cwd) == ("host", {"A": "1"}, "/there")
    assert parsed.warm_errand() == {"args": ("x", "y")}
    assert parsed.errand()["argv"] == parsed.argv


@pytest.mark.parametrize("args", [None, "x", [1], ["a\0"], ["\ud800"], {}])
def test_arguments_that_cannot_be_passed_are_refused(args: Any) -> None:
    with pytest.raises(Refused, match="args"):
        parse(Recipe.parse(message()), args=args)


def test_a_run_fits_when_all_that_a_start_settles_is_the_same() -> None:
    recipe = Recipe.parse(message())
    assert parse(recipe).fits_recipe
    assert parse(recipe, wall_s=1.0, cpu_s=1.0, cpus=0.5, output_bytes=5).fits_recipe
    assert parse(recipe, memory_bytes=LIMITS["memory_bytes"] * 2).fits_recipe
    assert not parse(recipe, memory_bytes=LIMITS["memory_bytes"] - 1).fits_recipe
    assert not parse(recipe, collect=True).fits_recipe
    assert not RunRequest.parse(request(1), 1).fits_recipe
    for name in set(SIZES) - {"memory_bytes"}:
        for change in (-1, 1):
            assert not parse(recipe, **{name: LIMITS[name] + change}).fits_recipe, name
