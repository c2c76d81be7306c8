"""`stockade worker` in a process of its own, and the queue that it works on."""

import contextlib
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stockade.store import Database
from stockade.store.jobs import JobStore
from stockade.store.jobs_database import DatabaseJobs
from tests.app.serving import START_S, command, environment

__all__ = ["WorkerProcess", "open_queue", "worker_process"]


@dataclass(kw_only=True)
class WorkerProcess:
    """A worker that takes jobs."""

    process: "subprocess.Popen[str]"
    said: str
    log: list[str] = field(default_factory=list)

    def has_logged(self, event: str) -> bool:
        return any(event in line for line in self.log)


@contextlib.contextmanager
def worker_process(data_dir: Path, *arguments: str, **variables: str) -> Iterator[WorkerProcess]:
    """A worker that is ready; killed at the end where it still runs."""
    process = subprocess.Popen(
        command("worker", "--data-dir", str(data_dir), *arguments),
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    log: list[str] = []
    reader = threading.Thread(target=log.extend, args=(process.stderr,), daemon=True)
    reader.start()
    try:
        said = process.stdout.readline()
        if not said:
            reader.join(5)
            raise AssertionError(f"the worker did not start:\n{''.join(log)}")
        yield WorkerProcess(process=process, said=said, log=log)
    finally:
        process.kill()
        process.wait(START_S)
        process.stdout.close()
        reader.join(START_S)  # its warden, which has the same pipe, ends with it
        process.stderr.close()


@contextlib.asynccontextmanager
async def open_queue(where: str | Path) -> AsyncIterator[JobStore]:
    """The queue in the database of a data directory, or at a URL."""
    place = where / "state" / "stockade.db" if isinstance(where, Path) else where
    async with await Database.open(place) as database:
        store = DatabaseJobs(database)
        await store.open()
        try:
            yield store
        finally:
            await store.close()
