"""The same money, spent many times at once: by orders, by transfers, by both."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.trust.errors import MeshError
from computemesh.trust.identity import PrivateKey
from computemesh.v1 import ledger_pb2
from tests.money import conserved

UNITS = 3_000_000
AT_ONCE = 12


def test_of_orders_and_transfers_at_once_that_each_take_all_there_is_one_is_accepted(cluster: Cluster) -> None:
    key, other = PrivateKey.generate(), PrivateKey.generate()
    with Client(cluster.profile, key=cluster.plan.keys["customer"]) as rich:
        rich.transfer(key.address, UNITS)
    with Client(cluster.profile, key=key) as poor, ThreadPoolExecutor(AT_ONCE) as threads:

        def spend(number: int) -> str:
            try:
                if number % 3:
                    poor.submit("noop", {"jobs": 1, "bytes": 16}, reward="3")
                else:
                    poor.transfer(other.address, UNITS)
            except MeshError as error:
                return error.reason
            return "accepted"

        outcomes = Counter(threads.map(spend, range(AT_ONCE)))
        assert outcomes == {"accepted": 1, "INSUFFICIENT_FUNDS": AT_ONCE - 1}
        assert poor.account().balance_units == 0
        assert conserved(poor.ledger("GetSupply", ledger_pb2.GetSupplyRequest()))
