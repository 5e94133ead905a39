"""Registered names: what a payload may say instead of an artifact's digest."""

from __future__ import annotations

import base64
import binascii
from functools import partial
from hashlib import sha256

from computemesh.service.artifacts import Artifacts
from computemesh.service.blobs import Owner
from computemesh.service.retention import FOREVER, Label
from computemesh.trust.errors import NotFound, Unauthorized, Unavailable
from computemesh.v1 import market_pb2 as pb
from market import store
from market.callers import Caller
from market.engine import Engine
from market.refusals import refuse
from market.store import ModelRow

DEFAULT_PAGE = 50


class Models:
    """The market's names. A name keeps its artifact; without an artifact store there are no names."""

    def __init__(self, engine: Engine, artifacts: Artifacts | None) -> None:
        self._engine, self._artifacts = engine, artifacts

    async def register(self, request: pb.RegisterModelRequest, caller: Caller) -> pb.RegisterModelResponse:
        """Raises NotFound, Unauthorized, Unavailable."""
        artifacts = self._artifacts
        if artifacts is None:
            raise Unavailable("this market has no artifact store", reason="NO_ARTIFACT_STORE")
        blob = await artifacts.store.get(request.artifact)
        known = await self._engine.group.read(partial(store.model, name=request.model_id))
        if known is not None and known.owner != caller.address:
            raise Unauthorized(f"model_id {request.model_id!r} belongs to another account than {caller.address}")
        # Held before it is named: a name never leads to bytes that are being removed.
        owner = Owner("model", sha256(request.model_id.encode()).hexdigest())
        label = Label(blob.name, blob.media_type, blob.created_ms)
        await artifacts.retention.hold(request.artifact, blob.size, owner, FOREVER, label)
        if await artifacts.store.find(request.artifact, to_keep=True) is None:
            raise NotFound(f"artifact {request.artifact} is about to be removed: put it again",
                           reason="ARTIFACT_NOT_FOUND")  # fmt: skip
        row = ModelRow(request.model_id, request.artifact, caller.address, self._engine.clock())
        await self._engine.group.commit(partial(store.put_model, row=row))
        if known is not None and known.artifact != request.artifact:
            await artifacts.retention.release(owner, known.artifact)
        return pb.RegisterModelResponse(model=_message(row))

    async def get(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        """Raises NotFound."""
        found = await self._engine.group.read(partial(store.model, name=request.model_id))
        if found is None:
            raise NotFound(f"no model {request.model_id!r} is registered", reason="MODEL_NOT_FOUND")
        return pb.GetModelResponse(model=_message(found))

    async def page(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """Raises InvalidArgument."""
        try:
            after = base64.urlsafe_b64decode(request.page_token).decode()
        except (binascii.Error, ValueError):
            raise refuse("page_token", f"{request.page_token[:80]!r} is not a token of this market") from None
        size = request.page_size or DEFAULT_PAGE
        rows = await self._engine.group.read(partial(store.models_after, name=after, limit=size + 1))
        following = base64.urlsafe_b64encode(rows[size - 1].model_id.encode()).decode() if len(rows) > size else ""
        return pb.ListModelsResponse(models=[_message(row) for row in rows[:size]], next_page_token=following)

    async def digests(self, names: list[str]) -> dict[str, str]:
        """Artifact of each of these names that is registered."""
        if not names:
            return {}
        return await self._engine.group.read(partial(store.artifacts_of_models, names=names))


def _message(row: ModelRow) -> pb.Model:
    return pb.Model(model_id=row.model_id, artifact=row.artifact, owner=row.owner, registered_ms=row.registered_ms)
