"""Every attack of the corpus, run as a tenant would run it, on the real backend: from nothing and from a template."""

import socket
from dataclasses import replace
from typing import Any

import anyio
import pytest

from stockade.attacks import LIMITS, Attack, Bait, Ending, Verdict, attacks, judge
from stockade.engine import Engine
from stockade.engine.templates import NOTHING
from stockade.errors import LanguageUnavailable
from stockade.model import Actor, Outcome, ProcessResult, RunSpec
from tests.security.conftest import Warm
from tests.security.host import DEADLINE_S, remains, wait_until_clean

TENANT = Actor(id="tenant")
TIME = {Outcome.WALL_TIME, Outcome.CPU_TIME}


def input_of(attack: Attack, bait: Bait) -> bytes:
    return b"x" * attack.stdin_bytes or bait.stdin


def times_of(attack: Attack) -> dict[str, Any]:
    """Limits for what nothing but its time ends, which are as good as the corpus's longer ones."""
    return {"wall_s": 1.5, "cpu_s": 1.0} if attack.accept and attack.accept <= TIME else {}


def ending(result: ProcessResult) -> Ending:
    return Ending(outcome=result.outcome, exit_code=result.exit_code, stdout=result.stdout, stderr=result.stderr)


@pytest.mark.anyio
@pytest.mark.parametrize("attack", attacks(), ids=lambda attack: f"{attack.group}:{attack.name}")
async def test_attack_is_contained(bait: Bait, engine: Engine, attack: Attack) -> None:
    name = socket.gethostname()
    try:
        for step in attack.steps:
            spec = RunSpec(
                language=attack.language,
                code=step,
                stdin=input_of(attack, bait),
                limits=replace(LIMITS, **times_of(attack)),
                template=NOTHING,
            )
            result = await engine.runs.run(TENANT, spec)
    except LanguageUnavailable as error:
        pytest.skip(str(error))
    demand_containment(attack, ending(result.last), bait, name)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "attack", [a for a in attacks() if a.language == "python"], ids=lambda attack: f"{attack.group}:{attack.name}"
)
async def test_attack_is_contained_when_it_begins_from_a_template(bait: Bait, warm: Warm, attack: Attack) -> None:
    name = socket.gethostname()
    for step in attack.steps:
        result = await warm.run(step.encode(), input_of(attack, bait), times=times_of(attack))
    demand_containment(attack, ending(result), bait, name)
    assert await warm.is_warm(), "what came after it no longer begins from a template"


def demand_containment(attack: Attack, ending: Ending, bait: Bait, name: str) -> None:
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
