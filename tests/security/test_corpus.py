"""Every attack of the corpus, run as a tenant would run it, on the real backend."""

import socket

import anyio
import pytest

from stockade.attacks import LIMITS, Attack, Bait, Ending, Verdict, attacks, judge
from stockade.engine import Engine
from stockade.errors import LanguageUnavailable
from stockade.model import Actor, Outcome, RunSpec
from tests.security.host import DEADLINE_S, remains, wait_until_clean

TENANT = Actor(id="tenant")


async def run(engine: Engine, attack: Attack, bait: Bait) -> Ending:
    stdin = b"x" * attack.stdin_bytes or bait.stdin
    for step in attack.steps:
        spec = RunSpec(language=attack.language, code=step, stdin=stdin, limits=LIMITS)
        result = await engine.runs.run(TENANT, spec)
    last = result.last
    return Ending(outcome=last.outcome, exit_code=last.exit_code, stdout=last.stdout, stderr=last.stderr)


@pytest.mark.anyio
@pytest.mark.parametrize("attack", attacks(), ids=lambda attack: f"{attack.group}:{attack.name}")
async def test_attack_is_contained(bait: Bait, engine: Engine, attack: Attack) -> None:
    name = socket.gethostname()
    try:
        ending = await run(engine, attack, bait)
    except LanguageUnavailable as error:
        pytest.skip(str(error))
    judgement = judge(attack, ending)
    assert judgement.verdict is Verdict.CONTAINED, f"{attack.threat}: {judgement.evidence}\n{ending}"
    assert wait_until_clean() == []
    assert bait.visitors() == ()
    assert socket.gethostname() == name


@pytest.mark.anyio
async def test_an_honest_program_runs_after_all_that(bait: Bait, engine: Engine) -> None:
    result = await engine.runs.run(TENANT, RunSpec(language="python", code="print(6 * 7)"))
    assert (result.last.outcome, result.last.stdout) == (Outcome.EXITED, b"42\n")


@pytest.mark.anyio
async def test_input_is_not_shared_between_runs(engine: Engine) -> None:
    write = "import os\nwith open('/proc/self/fd/0', 'r+b', buffering=0) as f: f.write(b'mark')"
    read = "import sys\nprint(sys.stdin.read() == '')"
    await engine.runs.run(TENANT, RunSpec(language="python", code=write))
    result = await engine.runs.run(TENANT, RunSpec(language="python", code=read))
    assert result.last.stdout == b"True\n"


@pytest.mark.anyio
async def test_the_look_at_the_host_sees_what_runs(engine: Engine) -> None:
    """Else it would prove nothing that it finds nothing."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.runs.run, TENANT, RunSpec(language="python", code="import time; time.sleep(60)"))
        with anyio.fail_after(DEADLINE_S):
            while not any("main.py" in line for line in remains()):  # noqa: ASYNC110  # /proc sends no events
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert wait_until_clean() == []
