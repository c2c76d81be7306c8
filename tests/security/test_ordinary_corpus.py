"""The corpus as runs under the warden of an ordinary user, who has neither root's control groups nor its user ids."""

import os
from collections.abc import AsyncIterator
from dataclasses import replace

import anyio
import pytest

from stockade.attacks import LIMITS, Attack, Bait, Ending, Verdict, attacks, judge
from stockade.attacks.given import is_given
from stockade.backends.base import BackendOptions, SandboxSpec
from stockade.backends.native import NativeBackend, launch
from stockade.model import Outcome, ProcessSpec
from tests.backends.conftest import UNENFORCED, ordinary_user_command
from tests.backends.sandboxes import limits
from tests.backends.templates import ENV

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an ordinary user"),
]
TIME = {Outcome.WALL_TIME, Outcome.CPU_TIME}
GROUPS = ("files", "forgery", "kernel", "network", "privileges", "processes", "races", "reuse", "templates")
"""Not the floods and the budgets: what an ordinary user's warden does not enforce, `stockade doctor` says."""
AT_ONCE = 4


@pytest.fixture(scope="module")
async def backend(
    bait: Bait, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[NativeBackend]:
    argv = ordinary_user_command(tmp_path_factory.mktemp("package"))
    options = BackendOptions(data_dir=tmp_path_factory.mktemp("data"), allow_unenforced=UNENFORCED, embedded=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "command", lambda _options: argv)
        backend = NativeBackend(options)
        await backend.start()
        yield backend
        await backend.close()


async def ending_of(backend: NativeBackend, attack: Attack, stdin: bytes) -> Ending:
    times = {"wall_s": 1.5, "cpu_s": 1.0} if attack.accept and attack.accept <= TIME else {"wall_s": 30.0}
    sandbox = SandboxSpec(image="host", limits=replace(limits(**LIMITS.given()), **times))
    for step in attack.steps:
        process = ProcessSpec(
            argv=("python3", "main.py"), cwd="/code", env=ENV, files={"main.py": step.encode()}, stdin=stdin
        )
        result = await backend.run(sandbox, process)
    return Ending(outcome=result.outcome, exit_code=result.exit_code, stdout=result.stdout, stderr=result.stderr)


@pytest.mark.parametrize("group", GROUPS)
async def test_nothing_is_reached(backend: NativeBackend, bait: Bait, group: str) -> None:
    chosen = [one for one in attacks() if one.group == group and one.language == "python"]
    found: list[str] = []
    room = anyio.Semaphore(AT_ONCE)

    async def one(attack: Attack) -> None:
        async with room:
            ending = await ending_of(backend, attack, b"x" * attack.stdin_bytes or bait.stdin)
        judgement = judge(attack, ending)
        if judgement.verdict is not Verdict.CONTAINED and not is_given(judgement, frozenset({"ordinary"})):
            found.append(f"{attack.name}: {judgement.verdict}: {judgement.evidence}")

    async with anyio.create_task_group() as tasks:
        for attack in chosen:
            tasks.start_soon(one, attack)
    assert found == []
    assert bait.visitors() == ()
