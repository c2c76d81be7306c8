"""The corpus behind gVisor: a spread of it, and all of it where STOCKADE_LONG_TESTS is set.

What a program is given there and not in a native sandbox is in `stockade.attacks.given`: objects of the guest's own
kernel, which the host has not heard of.
"""

import os
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from stockade.attacks import LIMITS, Attack, Bait, Ending, Verdict, attacks, judge
from stockade.attacks.given import is_given
from stockade.backends.base import BackendOptions
from stockade.backends.gvisor import GvisorBackend
from stockade.engine import Engine
from stockade.engine.runs import Runs
from stockade.engine.templates import NOTHING
from stockade.errors import LanguageUnavailable, Unavailable, Unsupported
from stockade.model import Actor, Outcome, RunSpec

LONG = bool(os.environ.get("STOCKADE_LONG_TESTS"))
SPREAD = (
    "fork-bomb", "memory-hog", "disk-everywhere", "inode-flood", "output-flood", "daemon", "forged-result",
    "host-secrets", "climb-out", "own-program-overwrite", "mount", "bpf", "namespaces-clone", "i386-calls",
    "become-root", "metadata", "host-loopback", "abstract-sockets", "see-host-processes", "zombies",
)  # fmt: skip


@pytest.fixture(scope="module")
async def runs(
    bait: Bait, engine: Engine, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[Runs]:
    """Runs behind gVisor, its warden started after the bait has been set out."""
    backend = GvisorBackend(BackendOptions(data_dir=tmp_path_factory.mktemp("data"), embedded=True))
    try:
        await backend.start()
    except (Unavailable, Unsupported) as error:
        await backend.close()
        pytest.skip(str(error))
    yield replace(engine.runs, backend=backend)
    await backend.close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "attack", [one for one in attacks() if LONG or one.name in SPREAD], ids=lambda one: f"{one.group}:{one.name}"
)
async def test_attack_is_contained_behind_gvisor(bait: Bait, runs: Runs, attack: Attack) -> None:
    name = socket.gethostname()
    is_timed = bool(attack.accept) and attack.accept <= {Outcome.WALL_TIME, Outcome.CPU_TIME}
    wall_s, cpu_s = (1.5, 1.0) if is_timed else (20.0, 15.0)
    limits = replace(LIMITS, wall_s=wall_s, cpu_s=cpu_s)
    try:
        for step in attack.steps:
            spec = RunSpec(
                language=attack.language,
                code=step,
                stdin=b"x" * attack.stdin_bytes or bait.stdin,
                limits=limits,
                template=NOTHING,
            )
            result = await runs.run(Actor(id="tenant"), spec)
    except LanguageUnavailable as error:
        pytest.skip(str(error))
    last = result.last
    ending = Ending(outcome=last.outcome, exit_code=last.exit_code, stdout=last.stdout, stderr=last.stderr)
    judgement = judge(attack, ending)
    is_contained = judgement.verdict is Verdict.CONTAINED or is_given(judgement, frozenset({"gvisor"}))
    assert is_contained, f"{attack.threat}: {judgement.evidence}\n{ending}"
    assert bait.visitors() == ()
    assert socket.gethostname() == name


def test_the_spread_is_of_the_corpus() -> None:
    assert set(SPREAD) <= {one.name for one in attacks()}


@pytest.mark.anyio
async def test_an_honest_program_runs_after_all_that(runs: Runs) -> None:
    result = await runs.run(Actor(id="tenant"), RunSpec(language="python", code="print(6 * 7)"))
    assert (result.last.outcome, result.last.stdout) == (Outcome.EXITED, b"42\n")
