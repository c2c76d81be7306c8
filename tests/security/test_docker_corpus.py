"""The corpus in containers, on a Docker engine of our own: where Docker itself is weak always, all in a long run."""

from collections.abc import AsyncIterator

import pytest

from stockade import registry
from stockade.app import engine as app_engine
from stockade.app.engine import build_engine
from stockade.attacks import LIMITS, Attack, Bait, Verdict, attacks, judge
from stockade.config import Config
from stockade.engine import Engine
from stockade.engine.templates import NOTHING
from stockade.errors import LanguageUnavailable
from stockade.model import Actor, Outcome, RunSpec
from tests.docker_engine import docker_engine, docker_options, is_long
from tests.security.test_corpus import ending, input_of

pytestmark = pytest.mark.anyio

TENANT = Actor(id="tenant")
ALWAYS = frozenset(
    {
        "abstract-sockets", "cgroup-files", "disk-everywhere", "file-activity", "forged-result", "init-secrets",
        "io-uring", "memory-shm", "starve-init", "terminals", "vsock",
    }
)  # fmt: skip


@pytest.fixture(scope="module")
async def contained(bait: Bait, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[Engine]:
    """An engine on the docker backend, after the bait has been set out."""
    with docker_engine(tmp_path_factory.mktemp("docker")) as engine, pytest.MonkeyPatch.context() as patch:
        data_dir = tmp_path_factory.mktemp("data")
        made = registry.find("backends", "docker").make(docker_options(engine, data_dir))
        patch.setattr(app_engine, "make_backend", lambda *_, **__: made)
        async with build_engine(Config(data_dir=data_dir), embedded=True) as running:
            yield running


@pytest.mark.parametrize(
    "attack",
    [attack for attack in attacks() if is_long or attack.name in ALWAYS],
    ids=lambda attack: f"{attack.group}:{attack.name}",
)
async def test_attack_is_contained_in_a_container(bait: Bait, contained: Engine, attack: Attack) -> None:
    try:
        for step in attack.steps:
            spec = RunSpec(
                language=attack.language, code=step, stdin=input_of(attack, bait), limits=LIMITS, template=NOTHING
            )
            result = await contained.runs.run(TENANT, spec)
    except LanguageUnavailable as error:
        pytest.skip(str(error))
    judgement = judge(attack, ending(result.last))
    assert judgement.verdict is Verdict.CONTAINED, f"{attack.threat}: {judgement.evidence}\n{ending(result.last)}"
    assert bait.visitors() == ()


async def test_an_honest_program_runs_after_all_that(contained: Engine) -> None:
    result = await contained.runs.run(TENANT, RunSpec(language="python", code="print(6 * 7)"))
    assert (result.last.outcome, result.last.stdout) == (Outcome.EXITED, b"42\n")
