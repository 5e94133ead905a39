"""`mesh explain COMMAND...`: the calls behind a command, as `buf curl` makes them.

The command is run with an observer on its channels: what reads is really asked, because later calls need the answers;
the first call that would change something is noted and held back.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from computemesh.cli import output
from computemesh.cli.options import JsonOption, Root

SETTINGS = {"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False}
READS = ("Get", "List", "Quote", "Describe", "Stat")
LOCAL = (("up",), ("worker", "join"), ("profile",), ("doctor",))
"""What starts, changes or looks at something on this machine: never run to be explained."""
BUF = "buf curl --protocol grpc --http2-prior-knowledge"


@dataclass(frozen=True, slots=True)
class Call:
    """One call: its service and method, where it goes, the request as JSON, and who the caller is.

    `caller`: "" nobody, "customer" or "operator" of the profile. `streams`: the client sends more than one message.
    """

    method: str
    address: str
    request: dict[str, Any]
    caller: str = ""
    streams: bool = False
    sent: bool = True


class Held(Exception):
    """A call that was noted and not made."""


@dataclass
class Notes:
    """The calls seen so far, each once."""

    calls: list[Call] = field(default_factory=list)

    def note(self, call: Call) -> None:
        """Remember a call; a repeat of it says nothing new. Raises Held for one that is not to be made."""
        if call not in self.calls:
            self.calls.append(call)
        if not call.sent:
            raise Held


def _interceptors(notes: Notes, address: str) -> list[Any]:
    """Observers of one channel, one per kind of call: grpc.aio asks each only for its own."""
    import grpc
    from google.protobuf import json_format

    def seen(details: Any, request: Any, *, streams: bool = False, reads: bool = True) -> None:
        name = details.method.decode() if isinstance(details.method, bytes) else details.method
        body = {} if streams else json_format.MessageToDict(request)
        sent = reads and name.rpartition("/")[2].startswith(READS)
        notes.note(Call(name.removeprefix("/"), address, body, _caller(name, details.metadata), streams, sent))

    class Unary(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
        async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
            seen(client_call_details, request)
            return await continuation(client_call_details, request)

    class Down(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[type-arg]
        async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
            seen(client_call_details, request, reads=False)

    class Both(grpc.aio.StreamStreamClientInterceptor):  # type: ignore[type-arg]
        async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
            seen(client_call_details, None, streams=True, reads=False)

    return [Unary(), Down(), Both()]


def _caller(method: str, metadata: Any) -> str:
    """Whose token a call carries; the secret itself is never shown."""
    if "authorization" not in dict(metadata or ()):
        return ""
    return "operator" if ".OrchestratorService/" in method else "customer"


def shell(call: Call) -> str:
    """The call as one command for a shell. The token is asked from the profile when it runs."""
    parts = [BUF]
    if call.caller:
        option = " --operator" if call.caller == "operator" else ""
        parts.append(f'-H "authorization: Bearer $(mesh profile token{option} --profile {shlex.quote(Root.found)})"')
    if call.request:
        parts.append(f"-d {shlex.quote(json.dumps(call.request, ensure_ascii=False))}")
    return " \\\n  ".join([*parts, f"http://{call.address}/{call.method}"])


def explain(
    context: typer.Context,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", show_default=False,
                                                 help="A command, e.g. task get TASK.")],
    as_json: JsonOption = False,
) -> None:
    """Print the calls behind a command as `buf curl` makes them. Asks what the command reads, changes nothing in the
    mesh."""
    words = [word for word in (*command, *context.args) if word != "--json"]
    as_json = output.OUTPUT.as_json  # also where --json came last, among the command's own words
    if words[:1] == ["explain"]:
        raise typer.BadParameter("explains other commands", param_hint="COMMAND")
    local = any(words[: len(path)] == list(path) for path in LOCAL)
    calls, said = ([], "") if local else _observed(words)
    output.OUTPUT.as_json = as_json
    document = [{"method": call.method, "address": call.address, "request": call.request, "caller": call.caller,
                 "command": "" if call.streams else shell(call)} for call in calls]  # fmt: skip
    output.emit({"calls": document, "error": said}, "\n\n".join(_lines(calls, words)) + _error(said))


def _observed(words: list[str]) -> tuple[list[Call], str]:
    """The calls of a command that is run under observation, and what the last one was answered with if that was an
    error. Raises what the command raises before its first call."""
    from computemesh.cli.main import app
    from computemesh.trust.errors import MeshError

    notes, said = Notes(), ""
    before = ["--profile", Root.profile] if Root.profile else []
    Root.interceptors = lambda address: _interceptors(notes, address.split(",")[0])
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            app([*before, *words], prog_name="mesh", standalone_mode=False)
    except (Held, typer.Exit):
        pass
    except MeshError as error:
        if not notes.calls:
            raise
        said = f"{error.reason}: {error.message}"
    finally:
        Root.interceptors = None
    return notes.calls, said


def _lines(calls: list[Call], words: list[str]) -> list[str]:
    if not calls:
        return [f"# mesh {shlex.join(words)} calls no service"]
    last = len(calls) - 1
    lines = []
    for at, call in enumerate(calls):
        first = "" if at == last else "# asked first, because what follows needs the answer\n"
        held = "" if call.sent else "# explain has not made this call\n"
        what = f"# {call.method} at {call.address} is a stream in both directions, which buf curl cannot hold"
        lines.append(first + held + (what if call.streams else shell(call)))
    return lines


def _error(said: str) -> str:
    return f"\n# the call was answered with {said}" if said else ""
