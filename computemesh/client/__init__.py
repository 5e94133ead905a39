"""The SDK: `AsyncClient`, and `Client`, which is the same with blocking calls."""

from computemesh.client.aio import AsyncClient
from computemesh.client.blocking import Result, TaskHandle
from computemesh.client.handles import AsyncResult, AsyncTaskHandle
from computemesh.client.profile import Profile
from computemesh.client.programs import Program
from computemesh.client.sync import Client

__all__ = ["AsyncClient", "AsyncResult", "AsyncTaskHandle", "Client", "Profile", "Program", "Result", "TaskHandle"]
