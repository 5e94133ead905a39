"""Whether a challenge's seed follows from what the orchestrator had committed to (docs/PROTOCOL.md section 6)."""

from __future__ import annotations

from computemesh.client.sync import Client
from computemesh.trust import acts, merkle
from computemesh.trust.errors import InvalidProof
from computemesh.v1 import ledger_pb2, orchestrator_pb2


class Beacons:
    """Epochs of one orchestrator, asked of the ledger once each."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[tuple[bytes, int], ledger_pb2.GetBeaconResponse] = {}

    def check(self, orchestrator_key: bytes, transcript: orchestrator_pb2.AuditTranscript) -> str:
        """Words for the report. Raises InvalidProof for a seed that is not the committed one, NotFound where the epoch
        was never sealed."""
        if not transcript.seed:
            return ""
        if not transcript.beacon_epoch:
            return ", seed from no beacon"
        found = self._beacon(orchestrator_key, transcript.beacon_epoch)
        if not found.secret:
            return f", seed of epoch {transcript.beacon_epoch}, whose secret is not out yet"
        leaf = merkle.leaf_hash(transcript.commitment)
        root = merkle.root_from_path(leaf, transcript.position, transcript.count, list(transcript.commitment_path))
        if acts.beacon_seed(found.secret, root) != transcript.seed:
            raise InvalidProof(f"the seed is not the one that epoch {transcript.beacon_epoch} was committed to")
        return f", seed committed to in epoch {transcript.beacon_epoch}"

    def _beacon(self, key: bytes, epoch: int) -> ledger_pb2.GetBeaconResponse:
        if (key, epoch) not in self._known:
            request = ledger_pb2.GetBeaconRequest(orchestrator_key=key.hex(), epoch=epoch)
            self._known[key, epoch] = self._client.ledger("GetBeacon", request)
        return self._known[key, epoch]
