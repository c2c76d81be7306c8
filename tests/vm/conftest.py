"""The marker of the tests that boot a virtual machine."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Called by pytest."""
    config.addinivalue_line("markers", "vm: boots a virtual machine for minutes; STOCKADE_VM_TESTS=1 asks for it")
