"""Functions that tests expose: honest, slow, broken and rude ones."""

import os
import sys
import time

from pydantic import BaseModel, Field

from computemesh import expose

STARTED = []


class Numbers(BaseModel):
    values: list[float] = Field(min_length=1, max_length=100)


class Total(BaseModel):
    total: float
    process: int = 0
    started: int = 0


class Anything(BaseModel):
    value: float = 0.0


def init() -> None:
    STARTED.append(1)


@expose(name="sum", timeout_s=5)
def add(numbers: Numbers) -> Total:
    return Total(total=sum(numbers.values))


@expose(name="whoami", timeout_s=5)
def whoami(anything: Anything) -> Total:
    return Total(total=anything.value, process=os.getpid(), started=len(STARTED))


@expose(name="sleep", timeout_s=0.5)
def sleep(anything: Anything) -> Total:
    time.sleep(anything.value)
    return Total(total=anything.value)


@expose(name="spin", timeout_s=0.5)
def spin(anything: Anything) -> Total:
    while True:
        pass


@expose(name="raise", timeout_s=5)
def fail(anything: Anything) -> Total:
    raise RuntimeError(f"no luck with {anything.value}")


@expose(name="lie", timeout_s=5)
def lie(anything: Anything) -> Total:
    return Total.model_construct(total="a lot")


@expose(name="die", timeout_s=5)
def die(anything: Anything) -> Total:
    os._exit(3)


@expose(name="long", timeout_s=5)
def long(anything: Anything) -> Anything:
    sys.setrecursionlimit(10**6)
    return Anything.model_construct(value="x" * 2_000_000)
