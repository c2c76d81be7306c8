"""`stockade jobs`: the queue as its operator sees it."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stockade.cli.jobs import jobs
from stockade.engine.webhooks import secret_of
from stockade.errors import Conflict, NotFound
from stockade.model import Outcome
from stockade.model.jobs import Job, JobFailure, JobResult
from tests.worker.processes import open_queue
from tests.worker.working import a_job


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STOCKADE_DATA_DIR", str(tmp_path))
    return tmp_path


def stockade(*arguments: str) -> str:
    """What `stockade jobs` prints; raises what it fails with."""
    return CliRunner().invoke(jobs, arguments, catch_exceptions=False).stdout


async def fill(data_dir: Path) -> Sequence[Job]:
    """One job that has failed, one that is dead, and one that waits."""
    async with open_queue(data_dir) as store:
        done, dead, waiting = a_job("secret()"), a_job(), a_job(language="go", labels={"ci": "1"})
        await store.add([done, dead])
        for job in await store.claim("w", most=2, lease_s=60):
            result = JobResult(outcome=Outcome.EXITED, exit_code=3, stdout=b"\xffout")
            if job.id == dead.id:
                result = JobResult(outcome=Outcome.LOST, failure=JobFailure.LOST, message="its host was lost")
            assert await store.finish(job.id, job.fence, result, keep_s=None, is_dead=job.id == dead.id)
        await store.add([waiting])
    return done, dead, waiting


def test_the_operator_sees_and_changes_the_queue(data_dir: Path) -> None:
    done, dead, waiting = asyncio.run(fill(data_dir))

    def listed(*arguments: str) -> set[str]:
        return {job["id"] for job in json.loads(stockade(*arguments, "--json"))}

    assert listed("list") == {done.id, dead.id, waiting.id}
    assert listed("list", "--state", "queued", "--state", "running") == {waiting.id}
    assert listed("list", "--language", "python") == {done.id, dead.id}
    assert listed("list", "--account", "nobody") == set()
    assert listed("dead") == {dead.id}
    table = stockade("list")
    assert waiting.id in table
    assert max(map(len, table.splitlines())) <= 80
    shown = stockade("show", done.id)
    assert "secret()" not in shown
    assert (json.loads(shown)["state"], json.loads(shown)["result"]["stdout"]) == ("failed", "\ufffdout")
    assert json.loads(stockade("depth", "--json"))["queued"] == {"go": 1}
    assert "1 go" in stockade("depth")

    assert stockade("cancel", waiting.id) == "cancelled\n"
    again = stockade("retry", dead.id).strip()
    assert json.loads(stockade("show", again))["retry_of"] == dead.id
    with pytest.raises(Conflict, match="only one that has ended"):
        stockade("retry", again)
    for command in ("show", "cancel", "retry"):
        with pytest.raises(NotFound, match="there is no job"):
            stockade(command, "nothing")
    assert CliRunner().invoke(jobs, ["list", "--state", "odd"]).exit_code == 2


def test_the_secret_of_webhooks_is_made_once_unless_it_is_configured(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = stockade("webhook-secret")
    assert len(made.strip()) == 64
    assert stockade("webhook-secret") == made
    monkeypatch.setenv("STOCKADE_JOBS_WEBHOOKS_SECRET", "mine")
    assert stockade("webhook-secret") == "mine\n"
    assert stockade("webhook-secret", "--account", "ann") == secret_of("mine", "ann") + "\n"
