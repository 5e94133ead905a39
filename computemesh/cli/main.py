"""The `mesh` command: its groups, and the one place where an error becomes an exit status.

Exit status: 0 done, 1 the operation failed (refused, not completed, not verified), 2 the command line is wrong.
Command modules import what they need inside the commands, so that `mesh --help` stays quick.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from computemesh.cli import artifact, ledger, model, output, program, task, up, verify, worker
from computemesh.cli.options import Root

app = typer.Typer(
    name="mesh",
    help="Buy and sell computation without trusting the seller.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("up")(up.up)
app.add_typer(task.app, name="task")
app.add_typer(program.app, name="program")
app.add_typer(artifact.app, name="artifact")
app.add_typer(model.app, name="model")
app.add_typer(worker.app, name="worker")
app.add_typer(ledger.app, name="ledger")
app.command("verify")(verify.verify)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(version("computemesh"))
        except PackageNotFoundError:
            typer.echo("computemesh (not installed)")
        raise typer.Exit


@app.callback()
def _root(
    profile: Annotated[Path | None, typer.Option("--profile", help="Profile file to use.")] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    Root.profile = profile


def main() -> None:
    """Run the command line of this process and exit."""
    output.OUTPUT.as_json = False
    try:
        app(prog_name="mesh")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at exit
        sys.exit(1)
    except Exception as error:
        from computemesh.trust.errors import MeshError

        if not isinstance(error, MeshError):
            raise
        sys.exit(output.fail(error))


if __name__ == "__main__":
    main()
