"""The worker: each job ends once, whatever becomes of its run, of its worker and of the store."""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from stockade.engine import Engine, Languages
from stockade.errors import BackendLost, Fault, Invalid, NoAnswer, QueueFull, Unavailable, UnknownLanguage
from stockade.model import Outcome, RunSpec
from stockade.model.jobs import Job, JobFailure, JobResult, JobState, Renewal, WorkerRecord
from stockade.settings import ConfigError
from stockade.worker import Worker
from stockade.worker.results import GiveBack, of_error
from tests.worker.fake_store import FakeStore
from tests.worker.working import QUICK, FakeRuns, a_job, becomes, ended, printed, working

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="session")
def languages() -> Languages:
    """All of them, as if they were installed."""
    return Languages.load(which=lambda image, requirement: True)


@pytest.fixture
async def store(anyio_backend: str) -> FakeStore:
    return FakeStore()


async def at_once(spec: RunSpec) -> bytes:
    return spec.code.encode()


async def never(spec: RunSpec) -> bytes:
    await asyncio.Event().wait()
    raise AssertionError


# On real sandboxes


async def test_a_program_ends_as_a_job_with_its_output_and_what_it_used(engine: Engine, store: FakeStore) -> None:
    job = a_job("import sys; print(input()[::-1]); sys.stderr.write('e'); sys.exit(3)")
    job = replace(job, spec=replace(job.spec, stdin=b"abc\n"))
    await store.add([job])
    async with working(store, engine):
        done = await ended(store, job)
    assert done.state is JobState.FAILED
    result = done.result
    assert result is not None
    assert (result.outcome, result.exit_code, result.stdout, result.stderr) == (Outcome.EXITED, 3, b"cba\n", b"e")
    assert result.duration_ns > 0
    assert result.memory_peak_bytes > 0
    assert not result.compilation_failed
    assert (done.attempts, store.calls["finish"]) == (1, 1)


async def test_a_job_that_is_cancelled_while_it_runs_keeps_what_it_had_printed(
    engine: Engine, store: FakeStore
) -> None:
    job = a_job("print('so far', flush=True)\nimport time\ntime.sleep(60)")
    await store.add([job])
    async with working(store, engine) as work:
        await store.watch(job.id, for_s=60)
        await becomes(lambda: store.pieces.get(job.id))
        await store.cancel(job.id, keep_s=None)
        work.worker.nudge()
        done = await ended(store, job)
    assert done.state is JobState.CANCELLED
    assert done.result is not None
    assert done.result.stdout == b"so far\n"
    assert done.result.failure is JobFailure.CANCELLED
    assert b"".join(piece.data for piece in store.pieces[job.id]) == b"so far\n"


async def test_a_job_of_a_barred_account_is_cancelled_and_not_run(languages: Languages, store: FakeStore) -> None:
    runs = FakeRuns(languages, at_once)
    bad, good, nobodys = a_job(key_id="eve"), a_job(), a_job(account_id="")
    await store.add([bad, good, nobodys])

    async def barred(account_ids: Collection[str]) -> Collection[str]:
        assert "" not in account_ids
        return {"eve"}

    async with working(store, runs, barred=barred):
        assert (await ended(store, bad)).state is JobState.CANCELLED
        for job in (good, nobodys):
            assert (await ended(store, job)).state is JobState.SUCCEEDED
    assert "eve" not in {actor.id for actor in runs.actors}


async def test_jobs_run_where_nobody_can_say_which_accounts_are_barred(languages: Languages, store: FakeStore) -> None:
    job = a_job()
    await store.add([job])

    async def barred(_account_ids: Collection[str]) -> Collection[str]:
        raise Unavailable("the database is away")

    async with working(store, FakeRuns(languages, at_once), barred=barred):
        assert (await ended(store, job)).state is JobState.SUCCEEDED


async def test_a_compile_error_is_the_result(engine: Engine, store: FakeStore) -> None:
    if not engine.languages.is_available("c"):
        pytest.skip("no C compiler is installed (apt-get install gcc)")
    job = a_job("int main( {", language="c")
    await store.add([job])
    async with working(store, engine):
        done = await ended(store, job)
    assert done.state is JobState.FAILED
    assert done.result is not None
    assert done.result.compilation_failed
    assert b"error" in done.result.stderr


# Places, pools, languages


async def test_no_more_jobs_run_at_once_than_there_are_places(store: FakeStore, languages: Languages) -> None:
    async def a_while(spec: RunSpec) -> bytes:
        await asyncio.sleep(0.01)
        return b""

    runs, jobs = FakeRuns(languages, a_while), [a_job() for _ in range(30)]
    await store.add(jobs)
    async with working(store, runs, places=3):
        for job in jobs:
            await ended(store, job)
    assert runs.most_running == 3


async def test_a_pool_bounds_the_jobs_of_its_language_alone(store: FakeStore, languages: Languages) -> None:
    go_on, began = asyncio.Event(), []

    async def note(spec: RunSpec) -> bytes:
        began.append(spec.language)
        await go_on.wait()
        return b""

    jobs = [a_job() for _ in range(4)] + [a_job(language="go") for _ in range(2)]
    await store.add(jobs)
    config = replace(QUICK, pools={"py": "1"})
    async with working(store, FakeRuns(languages, note), config, places=6):
        await becomes(lambda: len(began) == 3)
        assert sorted(began) == ["go", "go", "python"]
        go_on.set()
        for job in jobs:
            await ended(store, job)


async def test_jobs_of_other_languages_wait_for_a_worker_that_has_them(store: FakeStore, languages: Languages) -> None:
    go, python = a_job(language="go"), a_job()
    await store.add([go, python])
    async with working(store, FakeRuns(languages, at_once), languages=["py"]) as first:
        await ended(store, python)
        assert store.jobs[go.id].state is JobState.QUEUED
        assert store.announced[first.worker.id].languages == ("python",)
        async with working(store, FakeRuns(languages, at_once), languages=["golang"]):
            await ended(store, go)


async def test_nothing_is_claimed_for_a_language_that_is_not_installed(store: FakeStore) -> None:
    only_python = Languages.load(which=lambda image, requirement: "python" in requirement)
    job, other = a_job(), a_job(language="go")
    await store.add([other, job])
    async with working(store, FakeRuns(only_python, at_once)):
        await ended(store, job)
    assert store.jobs[other.id].state is JobState.QUEUED


@pytest.mark.parametrize("pools", [{"klingon": "1"}, {"python": "many"}, {"python": "1", "py": "2"}, {"go": "-1"}])
async def test_a_pool_that_makes_no_sense_is_refused(
    store: FakeStore, languages: Languages, pools: dict[str, str]
) -> None:
    runs = FakeRuns(languages, at_once)
    with pytest.raises(ConfigError, match=r"jobs\.pools"):
        Worker(store, runs, replace(QUICK, pools=pools), places=1)  # type: ignore[arg-type]


async def test_an_unknown_language_of_a_worker_is_refused(store: FakeStore, languages: Languages) -> None:
    with pytest.raises(UnknownLanguage):
        Worker(store, FakeRuns(languages, at_once), QUICK, places=1, languages=["klingon"])  # type: ignore[arg-type]


# What a run raises


async def test_a_run_that_is_refused_fails_the_job_with_the_reason(store: FakeStore, languages: Languages) -> None:
    async def refuse(spec: RunSpec) -> bytes:
        raise Invalid("stdin: is too cheerful")

    job = a_job()
    await store.add([job])
    async with working(store, FakeRuns(languages, refuse)):
        done = await ended(store, job)
    assert done.state is JobState.FAILED
    assert done.result is not None
    assert (done.result.failure, done.result.message) == (JobFailure.REFUSED, "stdin: is too cheerful")


@pytest.mark.parametrize("error", [Fault("secret of the host"), ZeroDivisionError("secret of the host")])
async def test_a_fault_of_ours_fails_the_job_and_tells_nothing_of_the_host(
    store: FakeStore, languages: Languages, error: Exception
) -> None:
    async def fail(spec: RunSpec) -> bytes:
        raise error

    job = a_job()
    await store.add([job])
    async with working(store, FakeRuns(languages, fail)):
        done = await ended(store, job)
    assert done.result is not None
    assert done.result.failure is JobFailure.FAULT
    assert "secret" not in done.result.message


@pytest.mark.parametrize("error", [QueueFull("no place"), Unavailable("no room")])
async def test_a_job_for_which_there_was_no_place_is_tried_again_and_loses_no_attempt(
    store: FakeStore, languages: Languages, error: Exception
) -> None:
    tries = 0

    async def busy_at_first(spec: RunSpec) -> bytes:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise error
        return b"at last"

    job = a_job()
    await store.add([job])
    async with working(store, FakeRuns(languages, busy_at_first)):
        done = await ended(store, job)
    assert done.result is not None
    assert (tries, done.attempts, done.result.stdout) == (2, 1, b"at last")


@pytest.mark.parametrize("error", [BackendLost("the warden died"), NoAnswer("the warden says nothing"), None])
async def test_a_job_whose_host_dies_each_time_is_dead_in_the_end(
    store: FakeStore, languages: Languages, error: Exception | None
) -> None:
    tries = 0

    class Lost(FakeRuns):
        async def run(self, actor: object, spec: RunSpec, *, watched: object = None):  # type: ignore[no-untyped-def]
            nonlocal tries
            tries += 1
            if error is None:
                return printed(b"", Outcome.LOST)
            raise error

    job = a_job()
    await store.add([job])
    async with working(store, Lost(languages, at_once)):
        done = await ended(store, job)
    assert (tries, done.attempts, done.is_dead, done.state) == (3, 3, True, JobState.FAILED)
    assert done.result is not None
    assert done.result.failure is JobFailure.LOST


async def test_a_job_acts_for_its_key_and_account(store: FakeStore, languages: Languages) -> None:
    runs, job = FakeRuns(languages, at_once), a_job(key_id="bob", account_id="acme")
    await store.add([job])
    async with working(store, runs):
        await ended(store, job)
    assert [(actor.id, actor.account_id, actor.is_admin) for actor in runs.actors] == [("bob", "acme", False)]


def test_a_job_that_finds_no_room_for_long_is_tried_less_often() -> None:
    def waits(age_s: float) -> float:
        verdict = of_error(Unavailable("no room"), attempts=1, most_attempts=3, age_s=age_s)
        assert isinstance(verdict, GiveBack)
        return verdict.after_s

    assert [waits(age_s) for age_s in (0, 60, 86_400)] == [1, 6, 30]


# The store


async def test_a_result_waits_for_a_store_that_is_away(store: FakeStore, languages: Languages) -> None:
    go_on = asyncio.Event()

    async def when_told(spec: RunSpec) -> bytes:
        await go_on.wait()
        return b"kept"

    runs, job = FakeRuns(languages, when_told), a_job()
    await store.add([job])
    async with working(store, runs):
        await becomes(lambda: runs.running)
        store.is_away = True
        go_on.set()
        await becomes(lambda: store.calls["finish"] >= 2)
        store.is_away = False
        done = await ended(store, job)
    assert done.result is not None
    assert (done.result.stdout, len(runs.actors)) == (b"kept", 1)


async def test_while_the_store_is_away_no_more_results_are_kept_than_fit(
    store: FakeStore, languages: Languages
) -> None:
    class TakesNothing(FakeStore):
        async def finish(self, *args: object, **options: object) -> None:
            self.calls["finish"] += 1
            raise Unavailable("read-only")

    store = TakesNothing()
    await store.add([a_job() for _ in range(30)])
    runs = FakeRuns(languages, at_once)
    async with working(store, runs, places=2):
        await becomes(lambda: len(runs.actors) == 10)
        calls = store.calls["finish"]
        await becomes(lambda: store.calls["finish"] > calls + 10)
        assert len(runs.actors) == 10


async def test_a_run_ends_when_its_lease_may_have_run_out(store: FakeStore, languages: Languages) -> None:
    runs, job = FakeRuns(languages, never), a_job()
    await store.add([job])
    async with working(store, runs, replace(QUICK, lease_s=0.5), places=1):
        await becomes(lambda: runs.running)
        store.is_away = True
        await becomes(lambda: runs.cut_short)
        store.is_away = False
        # It is given back, and has lost no attempt.
        await becomes(lambda: len(runs.actors) == 2)
        assert (store.jobs[job.id].attempts, store.jobs[job.id].fence) == (1, 2)


async def test_a_run_that_another_worker_has_by_now_is_ended_and_told_to_nobody(
    store: FakeStore, languages: Languages
) -> None:
    runs, job = FakeRuns(languages, never), a_job()
    await store.add([job])
    async with working(store, runs):
        await becomes(lambda: runs.running)
        taken = store.jobs[job.id]
        store.jobs[job.id] = replace(taken, fence=taken.fence + 1, worker="another")
        await becomes(lambda: runs.cut_short)
        calls = store.calls["renew"]
        await becomes(lambda: store.calls["renew"] > calls + 1)
    assert (store.calls["finish"], store.calls["release"], store.jobs[job.id].worker) == (0, 0, "another")


async def test_the_result_of_an_earlier_claim_does_not_count(store: FakeStore, languages: Languages) -> None:
    go_on = asyncio.Event()

    async def when_told(spec: RunSpec) -> bytes:
        await go_on.wait()
        return b"late"

    class Deaf(FakeStore):
        async def renew(self, worker: WorkerRecord, held: object, *, lease_s: float) -> Renewal:
            return Renewal(lost=frozenset(), cancelled=frozenset(), watched=frozenset())

    store = Deaf()
    runs, job = FakeRuns(languages, when_told), a_job()
    await store.add([job])
    async with working(store, runs):
        await becomes(lambda: runs.running)
        taken = store.jobs[job.id]
        store.jobs[job.id] = replace(taken, fence=taken.fence + 1)
        await store.finish(job.id, taken.fence + 1, JobResult(outcome=Outcome.EXITED, exit_code=0), keep_s=None)
        go_on.set()
        await becomes(lambda: store.calls["finish"] == 2)
    done = store.jobs[job.id].result
    assert done is not None
    assert done.stdout == b""


async def test_an_error_that_nobody_foresaw_does_not_end_the_worker(languages: Languages) -> None:
    class Odd(FakeStore):
        async def claim(self, *args: object, **options: object) -> Sequence[Job]:
            if self.calls["claim"] < 2:
                self.calls["claim"] += 1
                raise ZeroDivisionError
            return await super().claim(*args, **options)  # type: ignore[arg-type]

    store, job = Odd(), a_job()
    await store.add([job])
    async with working(store, FakeRuns(languages, at_once)):
        await ended(store, job)


async def test_a_delayed_job_starts_when_its_moment_has_come(store: FakeStore, languages: Languages) -> None:
    runs, job = FakeRuns(languages, at_once), a_job(run_at=datetime.now(UTC) + timedelta(hours=1))
    now = a_job()
    await store.add([job, now])
    async with working(store, runs):
        await ended(store, now)
        assert store.jobs[job.id].state is JobState.QUEUED
        store.ahead = timedelta(hours=2)
        await ended(store, job)


# The end


async def test_a_worker_that_is_to_stop_lets_its_jobs_end_and_takes_no_more(
    store: FakeStore, languages: Languages
) -> None:
    go_on = asyncio.Event()

    async def when_told(spec: RunSpec) -> bytes:
        await go_on.wait()
        return b"in time"

    runs, job, later = FakeRuns(languages, when_told), a_job(), a_job()
    await store.add([job])
    async with working(store, runs) as work:
        await becomes(lambda: runs.running)
        work.stop.set()
        await becomes(lambda: store.announced[work.worker.id].is_draining)
        await store.add([later])
        go_on.set()
        await work.end()
    result = store.jobs[job.id].result
    assert result is not None
    assert result.stdout == b"in time"
    assert store.jobs[later.id].state is JobState.QUEUED


@pytest.mark.parametrize("hurry", [False, True])
async def test_what_does_not_end_in_time_is_given_back(store: FakeStore, languages: Languages, hurry: bool) -> None:
    runs, job = FakeRuns(languages, never), a_job()
    await store.add([job])
    async with working(store, runs, drain_s=60.0 if hurry else 0.1) as work:
        await becomes(lambda: runs.running)
        if hurry:
            work.at_once.set()
        await work.end()
    again = store.jobs[job.id]
    assert (again.state, again.attempts, runs.cut_short) == (JobState.QUEUED, 0, 1)


async def test_a_worker_ends_although_the_store_is_away(store: FakeStore, languages: Languages) -> None:
    runs, job = FakeRuns(languages, never), a_job()
    await store.add([job])
    async with working(store, runs, drain_s=0.1) as work:
        await becomes(lambda: runs.running)
        store.is_away = True
        await work.end()
    assert store.jobs[job.id].state is JobState.RUNNING  # until its lease runs out
