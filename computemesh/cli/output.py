"""What the command prints: one JSON document or text for people on stdout, progress and errors on stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from computemesh.trust.errors import MeshError


class Output:
    """How this invocation prints: set once from its options."""

    def __init__(self) -> None:
        self.as_json = False

    @property
    def quiet(self) -> bool:
        """Whether progress is off: machines read stdout, or nobody watches stderr."""
        return self.as_json or not sys.stderr.isatty()


OUTPUT = Output()

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 + SIGINT."""

NEXT_STEPS = {
    "UNAVAILABLE": "is the mesh running? start one with `mesh up`, or name another with --profile",
    "INSUFFICIENT_FUNDS": "on a local mesh `mesh ledger faucet AMOUNT` adds funds; or offer a smaller --reward",
    "TASK_NOT_FOUND": "`mesh task list` shows your tasks",
    "UNAUTHENTICATED": "the profile needs an api_key, or a key_file that signs (docs/quickstart.md)",
    "ID_CONFLICT": "a repeat has the same content, and no --deadline or the same absolute one (+30m moves)",
    "COST_LIMIT": "`mesh task quote` shows what a smaller payload costs; or raise --max-cost",
    "PROFILE_NOT_FOUND": "`mesh profile list` shows those you have, `mesh doctor` looks at the whole setup",
    "BLOCK_NOT_FOUND": "`mesh ledger block latest` shows the newest",
    "ARTIFACT_NOT_FOUND": "`mesh artifact ls` shows yours; who knows a digest may read it for as long as it is kept",
    "WORKER_NOT_FOUND": "`mesh worker list` shows those the orchestrator knows",
    "UNAUTHORIZED": "`mesh profile list` shows who you are here; another --profile may be the owner",
    "TASK_FAILED": "`mesh task logs TASK` shows each job and what failed",
    "PORT_TAKEN": "`mesh up --port-base 7201` uses other ports",
    "DEADLINE_EXCEEDED": "it may still happen: look with `mesh task get`, or raise the time limit",
}


def set_json(value: bool) -> bool:
    """Option callback of `--json`."""
    OUTPUT.as_json = OUTPUT.as_json or value
    return value


def plain(value: Any) -> Any:
    """A value as JSON can hold it: records as objects, bytes as hexadecimal."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value


def emit(document: Any, text: str | None = None) -> None:
    """Print the document with --json, else the text."""
    if OUTPUT.as_json:
        sys.stdout.write(json.dumps(plain(document), indent=2, ensure_ascii=False) + "\n")
    elif text:
        sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """A line for people on stderr; nothing with --json."""
    if not OUTPUT.as_json:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Left-aligned columns, two blanks apart; readable in a pipe as on a screen."""
    lines = [[str(cell) for cell in row] for row in (list(columns), *rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in lines)  # fmt: skip


def pairs(values: Mapping[str, Any]) -> str:
    """One `name  value` line each."""
    width = max(map(len, values), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in values.items())


def fail(error: MeshError) -> int:
    """Report an error: reason and message, the fields at fault, the next step. Returns the exit status: 1, or 130 for
    an interruption."""
    status = INTERRUPTED if error.reason == "INTERRUPTED" else 1
    step = NEXT_STEPS.get(error.reason)
    if OUTPUT.as_json:
        violations = [{"field": field, "description": text} for field, text in error.violations]
        _emit_error(error.reason, error.status, error.message, violations, error.metadata, step or "")
        return status
    unsaid = [(field, text) for field, text in error.violations if text not in error.message]
    unnamed = [field for field, text in error.violations if text in error.message and field not in error.message]
    where = f" ({', '.join(dict.fromkeys(unnamed))})" if unnamed else ""
    sys.stderr.write(f"mesh: {error.reason}{where}: {error.message}\n")
    for field, text in unsaid:
        sys.stderr.write(f"  {field}: {text}\n")
    if step:
        sys.stderr.write(f"  {step}\n")
    return status


def _emit_error(
    reason: str, status: str, message: str, violations: list[dict[str, str]], metadata: Mapping[str, str], step: str
) -> None:
    emit({"error": {
        "reason": reason, "status": status, "message": message, "violations": violations, "metadata": metadata,
        "next_step": step,
    }})  # fmt: skip


def usage(error: Any) -> int:
    """Report a wrong command line (a UsageError) as one JSON document. Returns the exit status 2."""
    message = error.format_message()
    parameter = getattr(error, "param", None)
    field = getattr(error, "option_name", None) or getattr(parameter, "name", None) or ""
    path = error.ctx.command_path if error.ctx is not None else "mesh"
    violations = [{"field": field, "description": message}] if field else []
    _emit_error("USAGE", "INVALID_ARGUMENT", message, violations, {}, f"`{path} --help` shows how it is called")
    return error.exit_code  # type: ignore[no-any-return]


def interrupted(what: str, metadata: Mapping[str, str] | None = None) -> MeshError:
    """The error of a command that Ctrl-C ended; `what` says how things stand."""
    from computemesh.trust.errors import MeshError

    error = MeshError(f"interrupted: {what}", reason="INTERRUPTED", metadata=metadata)
    error.status = "CANCELLED"
    return error


def stderr_console() -> Console:
    """A console on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def progress_bar() -> Progress:
    """A bar on stderr with count, time and what is left of it; invisible where nobody watches."""
    from computemesh.client.progress import jobs_bar

    return jobs_bar(not OUTPUT.quiet)
