"""The `mesh` command: its groups, and the one place where an error becomes an exit status.

Exit status: 0 done, 1 the operation failed (refused, not completed, not verified), 2 the command line is wrong,
130 interrupted (Ctrl-C).
Command modules import what they need inside the commands, so that `mesh --help` stays quick.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Annotated, cast

import typer

from computemesh.cli import (
    artifact,
    audit,
    authority,
    database,
    dispute,
    doctor,
    events,
    explain,
    function,
    ledger,
    model,
    output,
    pool,
    profile,
    program,
    stake,
    task,
    top,
    up,
    validator,
    verify,
    worker,
)
from computemesh.cli.options import ProfileOption, Root

_WRITING = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EPIPE)
UsageError = cast("type[Exception]", typer.BadParameter.__base__)  # typer does not export it by name

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
app.add_typer(function.app, name="function")
app.add_typer(model.app, name="model")
app.add_typer(worker.app, name="worker")
app.add_typer(ledger.app, name="ledger")
app.command("events")(events.events)
app.add_typer(events.webhooks, name="webhook")
app.add_typer(pool.app, name="pool")
app.add_typer(stake.app, name="stake")
app.add_typer(dispute.app, name="dispute")
app.add_typer(validator.app, name="validator")
app.add_typer(authority.keys, name="key")
app.add_typer(authority.app, name="authority")
app.add_typer(audit.app, name="audit")
app.command("verify")(verify.verify)
app.command("db")(database.db)
app.command("top")(top.top)
app.command("doctor")(doctor.doctor)
app.command("explain", context_settings=explain.SETTINGS)(explain.explain)
app.add_typer(profile.app, name="profile")


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
    profile: ProfileOption = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    Root.profile = profile


def main() -> None:
    """Run the command line of this process and exit."""
    if sys.stderr is None:  # closed by who started us: what is said there is lost, and is no error
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (as long as the process)
    if sys.stdout is None:
        sys.stderr.write("mesh: OUTPUT: stdout is closed\n")
        sys.exit(1)
    try:
        status = _run(sys.argv[1:])
        sys.stdout.flush()
    except OSError as error:
        status = _stdout_failed(error)
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    """The exit status of a command line. Raises OSError where stdout cannot be written."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    output.OUTPUT.as_json = as_json = "--json" in options  # known before they are parsed: that may be what fails
    try:
        if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
            from computemesh.service import tracing

            tracing.configure("client")
        status = app(arguments, prog_name="mesh", standalone_mode=not as_json)
    except SystemExit as end:
        return int(end.code or 0)
    except (KeyboardInterrupt, typer.Abort):
        return output.fail(output.interrupted("nothing more is known of what was asked for"))
    except UsageError as error:
        return output.usage(error)
    except Exception as error:
        return _failed(error)
    if status == output.INTERRUPTED:
        return output.fail(output.interrupted("nothing more is known of what was asked for"))
    return status if isinstance(status, int) else 0


def _failed(error: Exception) -> int:
    from computemesh.trust.errors import Internal, MeshError

    if isinstance(error, MeshError):
        return output.fail(error)
    if isinstance(error, OSError):
        sys.stdout.flush()  # raises again where stdout is what failed, except where it threw away what it held
        if not output.OUTPUT.as_json and error.filename is None and error.errno in _WRITING:
            raise error
    if os.environ.get("MESH_DEBUG"):
        import traceback

        traceback.print_exception(error)
    text = " ".join(str(error)[:300].split())
    said = f"{type(error).__name__}{': ' if text else ''}{text}"
    return output.fail(Internal(f"{said}; run with MESH_DEBUG=1 for the traceback"))


def _stdout_failed(error: OSError) -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at exit
    if not isinstance(error, BrokenPipeError):  # a reader such as `head` has what it wanted
        with contextlib.suppress(OSError):
            sys.stderr.write(f"mesh: OUTPUT: output cannot be written: {error.strerror}\n")
    return 1


if __name__ == "__main__":
    main()
