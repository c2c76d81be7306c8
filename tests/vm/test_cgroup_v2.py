"""Where control groups are v2 the warden enforces what it says, for root, in a container, and for an ordinary user."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.vm import checks, run

pytestmark = [pytest.mark.vm, pytest.mark.timeout(run.WITHIN_S + 60)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, run.Result]:
    """What one virtual machine saw, in which every check ran once."""
    if os.environ.get("STOCKADE_VM_TESTS") != "1":
        pytest.skip("takes minutes in an emulated machine; set STOCKADE_VM_TESTS=1")
    if (problem := run.missing_tools()) is not None:
        pytest.skip(problem)
    directory = tmp_path_factory.mktemp("vm")
    try:
        top = Path(os.environ.get("STOCKADE_VM_KERNEL", "/"))
        kernel = run.find_kernel(top) or run.find_kernel(run.fetch_kernel(directory))
    except run.NotHere as error:
        pytest.skip(str(error))
    assert kernel is not None, "Debian's package holds no kernel with its modules"
    return run.run(kernel, directory)


@pytest.mark.parametrize("name", checks.NAMES)
def test_it_holds_on_a_pure_v2_host(name: str, results: Mapping[str, run.Result]) -> None:
    held, saw = results[name]
    assert held, saw
