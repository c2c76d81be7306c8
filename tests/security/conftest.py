"""Fixtures of the security suite."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import anyio
import pytest

from stockade.attacks import LIMITS, Bait
from stockade.backends.base import SandboxSpec
from stockade.backends.native import NativeBackend
from stockade.engine import Engine
from stockade.model import LimitOverrides, Limits, ProcessResult, ProcessSpec, Template, TemplateKind
from tests.backends.templates import ENV, IS_FORK

WITHIN_S = 60.0


@pytest.fixture(scope="module")
def bait() -> Iterator[Bait]:
    """Set out before a module's own warden starts, so that whatever leaks from the host would have it; and gone before
    tests that have nothing to do with it look at this process.
    """
    with Bait() as bait:
        yield bait


class Warm:
    """Runs Python programs from a template, under the corpus's limits."""

    def __init__(self, backend: NativeBackend, limits: Limits, *, preload: tuple[str, ...] = ()) -> None:
        self.backend = backend
        self._sandbox = SandboxSpec(image="host", limits=limits)
        self._template = Template(kind=TemplateKind.FORK, preload=preload)

    async def run(
        self, code: bytes, stdin: bytes = b"", *, times: Mapping[str, Any] = MappingProxyType({}), **members: Any
    ) -> ProcessResult:
        """*times*: limits that are to be others; they are none of the template's."""
        sandbox = replace(self._sandbox, limits=replace(self._sandbox.limits, **times))
        return await self.backend.run(sandbox, self._process(code, stdin, **members))

    def _process(self, code: bytes, stdin: bytes = b"", **members: Any) -> ProcessSpec:
        return ProcessSpec(
            argv=("python3", "main.py"),
            cwd="/code",
            env=ENV,
            files={"main.py": code},
            stdin=stdin,
            template=self._template,
            **members,
        )

    async def is_warm(self) -> bool:
        """Whether runs begin from a template now."""
        return (await self.run(IS_FORK.encode())).stdout == b"True\n"

    async def until_warm(self) -> None:
        """Have the template begun, and wait until runs begin from it."""
        await self.backend.warm(self._sandbox, self._process(b""))
        with anyio.fail_after(WITHIN_S):
            while not await self.is_warm():  # noqa: ASYNC110  # nothing tells when it is
                await anyio.sleep(0.02)


@pytest.fixture(scope="module")
async def warm(bait: Bait, engine: Engine) -> Warm:
    """On the session's backend, after the bait has been set out."""
    backend = engine.runs.backend
    assert isinstance(backend, NativeBackend)
    warm = Warm(backend, engine.limits.resolve(LimitOverrides(), LIMITS))
    await warm.until_warm()
    return warm
