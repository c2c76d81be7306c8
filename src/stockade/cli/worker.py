"""`stockade worker`."""

import os
from typing import Annotated

import typer

from stockade.cli.options import ConfigFile, DataDir

__all__ = ["worker"]


def worker(
    language: Annotated[
        list[str] | None,
        typer.Option(
            "--language",
            metavar="NAME",
            help="Take only jobs of this language. May be repeated. Default: all that are installed.",
            show_default=False,
        ),
    ] = None,
    places: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Jobs at once. Default: queue.places", show_default=False)
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Show figures for Prometheus there; else it listens nowhere."),
    ] = "",
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Do queued jobs, beside a server or on another machine.

    It takes them from the database (`DATABASE_URL`, or the data directory's) or from Redis (`REDIS_URL`). Start as many
    as you like. SIGTERM lets running jobs end; a second one gives them back for others to run.
    """
    from stockade.app.http import translated
    from stockade.app.worker import WorkerOptions, work
    from stockade.config import load

    loaded = load(file=config, environ=translated(os.environ)[0], options={"data_dir": data_dir})
    options = WorkerOptions(places=places, languages=tuple(language or ()), metrics=metrics)
    words = f"{', '.join(options.languages)} only" if options.languages else "all installed languages"

    def ready() -> None:
        print(f"Stockade works: {options.places or loaded.queue.places} jobs at once, {words}", flush=True)

    work(loaded, options, ready=ready)
