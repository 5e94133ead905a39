"""What a worker's operator writes: functions with one pydantic model in and one out.

    from pydantic import BaseModel
    from computemesh import expose

    class Question(BaseModel):
        text: str

    class Answer(BaseModel):
        words: int

    def init() -> None:                        # optional: load models; runs once in the process of the functions
        ...

    @expose(name="count-words", timeout_s=5)
    def count_words(question: Question) -> Answer:
        return Answer(words=len(question.text.split()))

`mesh worker join HOST:PORT --functions my_service.py` offers them. `count_words(question)` is the plain call, and
`count_words.local({"text": "..."})` what a worker would make of it, without any mesh: both are for tests.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")
MAX_NAME_BYTES = 64
MAX_TIMEOUT_S = 3600
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


class Exposed(Generic[In, Out]):
    """A function on offer: pydantic models `takes` and `gives`, at most `timeout_s` seconds per call."""

    def __init__(self, name: str, call: Callable[[In], Out], takes: Any, gives: Any, timeout_s: float) -> None:
        functools.update_wrapper(self, call)
        self.name, self.call, self.takes, self.gives, self.timeout_s = name, call, takes, gives, timeout_s

    def __call__(self, question: In, /) -> Out:
        """The function itself, with nothing around it."""
        return self.call(question)

    def local(self, question: In | Mapping[str, Any], /) -> Out:
        """What a worker would answer: the input read from JSON, the function called, its answer validated.

        Raises pydantic's ValidationError for a wrong input or answer, and whatever the function raises.
        """
        plain = question.model_dump(mode="json") if hasattr(question, "model_dump") else question
        given = self.takes.model_validate_json(json.dumps(plain))
        return typing.cast("Out", self.gives.model_validate(self.answered(self.call(given))))

    def answered(self, answer: Any) -> Any:
        """The plain value of what the function returned, through its own model: a function may build that without
        validation, or return another. Raises ValidationError."""
        plain = answer.model_dump(mode="json") if hasattr(answer, "model_dump") else answer
        return self.gives.model_validate(plain).model_dump(mode="json")

    def __repr__(self) -> str:
        return f"<exposed {self.name}: {self.takes.__name__} -> {self.gives.__name__}>"


EXPOSED: dict[str, Exposed[Any, Any]] = {}


def expose(*, name: str, timeout_s: float = 60.0) -> Callable[[Callable[[In], Out]], Exposed[In, Out]]:
    """Offer the decorated function to tasks of type `function`, under `name`.

    It takes one argument annotated with a pydantic model and returns one; both may not be generic. `timeout_s` is
    the longest one call may take, seconds, above 0 and at most 3,600. Raises TypeError or ValueError saying what is
    wrong, where the file is loaded.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"name {name[:80]!r} must be 1 to 64 letters, digits, '.', '_' or '-'")
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise ValueError(f"timeout_s of {name} must be above 0 and at most {MAX_TIMEOUT_S:,}, not {timeout_s}")

    def register(function: Callable[[In], Out]) -> Exposed[In, Out]:
        if name in EXPOSED:
            raise ValueError(f"two functions are exposed as {name!r}")
        takes, gives = _models(function, name)
        exposed = EXPOSED[name] = Exposed(name, function, takes, gives, float(timeout_s))
        return exposed

    return register


def _models(function: Callable[..., Any], name: str) -> tuple[Any, Any]:
    from pydantic import BaseModel

    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{name} must be a plain function, not async: it has a process of its own")
    parameters = list(inspect.signature(function).parameters.values())
    hints = typing.get_type_hints(function)
    if len(parameters) != 1 or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    ):  # fmt: skip
        raise TypeError(f"{name} must take exactly one argument, a pydantic model")
    takes, gives = hints.get(parameters[0].name), hints.get("return")
    for what, model in (("its argument", takes), ("what it returns", gives)):
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise TypeError(f"{name}: {what} must be annotated with a pydantic model, not {model!r}")
    return takes, gives
