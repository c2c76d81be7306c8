"""The command line. Commands import what they need when they are called: `stockade run` never loads a web framework."""

import os
import sys

import typer

from stockade.cli.box import box
from stockade.cli.docker_gate import docker_gate
from stockade.cli.executor import TO_THE_END, executor
from stockade.cli.failures import complain
from stockade.cli.image import image
from stockade.cli.inspect import doctor, languages, version
from stockade.cli.jobs import jobs
from stockade.cli.keys import keys
from stockade.cli.run import run
from stockade.cli.sandbox import sandbox
from stockade.cli.serve import serve
from stockade.cli.usage import usage
from stockade.cli.users import users
from stockade.cli.volume import volume
from stockade.cli.warden import warden
from stockade.cli.worker import worker
from stockade.errors import Invalid, StockadeError

__all__ = ["app", "main"]

app = typer.Typer(
    name="stockade",
    help="Runs code that nobody vouches for, in a fresh Linux sandbox for every run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command(context_settings=TO_THE_END)(executor)
app.command()(run)
app.command()(languages)
app.command()(doctor)
app.command()(worker)
app.command()(warden)
app.command("docker-gate")(docker_gate)
app.add_typer(sandbox, name="sandbox")
app.add_typer(box, name="box")
app.add_typer(volume, name="volume")
app.add_typer(image, name="image")
app.add_typer(keys, name="keys")
app.add_typer(users, name="users")
app.add_typer(jobs, name="jobs")
app.command()(usage)
app.command()(version)


def main() -> None:
    """Entry point of `stockade`. What we refuse or fail at is one line on standard error, never a traceback."""
    try:
        app()
    except StockadeError as error:
        complain(error)
        sys.exit(2 if isinstance(error, Invalid) else 1)
    except BrokenPipeError:
        # Whoever read our output has gone (`stockade languages | head`). Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
