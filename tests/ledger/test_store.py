"""Where results stand, by pages of jobs."""

from __future__ import annotations

import sqlite3

from hypothesis import given, settings
from hypothesis import strategies as st

from computemesh.service.migrations import migrate
from ledger import store

Commit = list[tuple[int, list[int]]]
COMMITS = st.lists(st.tuples(
    st.integers(1, 3), st.lists(st.integers(0, 900) | st.just(2**20 - 1), min_size=1, max_size=40, unique=True)),
    max_size=6)  # fmt: skip


@given(st.lists(COMMITS, max_size=4), st.integers(-1, 900), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_places_are_found_again_in_job_order(commits: list[Commit], after: int, limit: int) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, store.STEPS)
    known: dict[tuple[int, int], int] = {}
    at = 4096
    for commit in commits:
        results = []
        for escrow, jobs in commit:
            fresh = [job for job in jobs if (escrow, job) not in known]
            known.update({(escrow, job): at + index for index, job in enumerate(fresh)})
            if fresh:
                results.append((escrow, fresh, range(at, at + len(fresh))))
            at += 4096
        store.write(connection, store.Rows(results=results))
    assert store.result_sums(connection)[0] == len(known)
    for escrow in (1, 2, 3):
        expected = sorted((job, place) for (of, job), place in known.items() if of == escrow)
        assert store.places_after(connection, escrow, -1, 10**6) == expected
        assert store.places_after(connection, escrow, after, limit) == [
            row for row in expected if row[0] > after][:limit]
        assert all(store.place(connection, escrow, job) == place for job, place in expected)
    assert store.place(connection, 4, 0) is None
