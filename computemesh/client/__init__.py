"""The SDK: `AsyncClient`, and `Client`, which is the same with blocking calls."""

from computemesh.client.aio import AsyncClient, AsyncTaskHandle
from computemesh.client.profile import Profile
from computemesh.client.sync import Client, TaskHandle

__all__ = ["AsyncClient", "AsyncTaskHandle", "Client", "Profile", "TaskHandle"]
