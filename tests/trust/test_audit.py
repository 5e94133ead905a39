"""Samples, openings and job trees."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from computemesh.trust import audit, merkle
from computemesh.trust.audit import (
    JobTree,
    Layout,
    Opening,
    fold_opening,
    parse_openings,
    sample,
    verify_previous,
)
from computemesh.trust.digest import tagged
from computemesh.trust.errors import InvalidArgument, InvalidProof

H = st.binary(min_size=32, max_size=32)
SEED, LEAF = sha256(b"seed").digest(), sha256(b"leaf").digest()
LAYOUTS = [Layout(segments, units) for segments in range(1, 6) for units in (1, 2, 3, 5, 7, 8, 13)]


def digests(layout: Layout) -> list[bytes]:
    return [sha256(index.to_bytes(4, "big")).digest() for index in range(layout.count)]


@given(H, H, st.integers(0, 2000), st.integers(-1, 64))
def test_sample_is_distinct_in_range_and_deterministic(seed: bytes, leaf: bytes, n: int, k: int) -> None:
    drawn = sample(seed, leaf, n, k)
    assert len(drawn) == len(set(drawn)) == max(0, min(n, k))
    assert all(0 <= index < n for index in drawn)
    assert drawn == sample(seed, leaf, n, k)


def test_sample_follows_the_protocols_stream() -> None:
    prefix = tagged("computemesh.v1/challenge", SEED + LEAF)
    words = [
        w for c in range(4) for w in struct.unpack(">4Q", sha256(prefix + struct.pack(">I", c)).digest())
    ]
    expected: list[int] = []
    for j in range(1000 - 9, 1000):  # no word of this stream is in the rejected last stretch
        t = words.pop(0) % (j + 1)
        expected.append(j if t in expected else t)
    assert sample(SEED, LEAF, 1000, 9) == expected


def test_asking_for_all_units_asks_for_each_in_order() -> None:
    assert sample(SEED, LEAF, 5, 5) == sample(SEED, LEAF, 5, 8) == [0, 1, 2, 3, 4]
    assert sample(SEED, LEAF, 0, 8) == []


def test_samples_differ_by_seed_and_by_commitment() -> None:
    drawn = sample(SEED, LEAF, 10**6, 8)
    assert drawn != sample(LEAF, SEED, 10**6, 8)
    assert drawn != sample(SEED, SEED, 10**6, 8)


def test_every_unit_is_drawn_equally_often() -> None:
    n, k, rounds = 40, 8, 4000
    counts: Counter[int] = Counter()
    for round_number in range(rounds):
        counts.update(sample(sha256(struct.pack(">I", round_number)).digest(), LEAF, n, k))
    expected = rounds * k / n
    chi_square = sum((counts[i] - expected) ** 2 / expected for i in range(n))
    # 39 degrees of freedom, less without replacement: 72.1 is the 0.1 % point. The seeds are fixed.
    assert chi_square < 72.1


def test_modulo_bias_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    words = iter(
        [2**64 - 1, 5]
    )  # 2^64 - 1 is in the incomplete last stretch of every odd bound > 1 but its divisors
    monkeypatch.setattr(audit, "_stream", lambda seed, leaf: words)
    assert sample(SEED, LEAF, 7, 1) == [5]


@pytest.mark.parametrize(("seed", "leaf"), [(b"short", LEAF), (SEED, b"short")])
def test_seed_and_leaf_have_one_length(seed: bytes, leaf: bytes) -> None:
    with pytest.raises(InvalidArgument):
        sample(seed, leaf, 10, 2)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_unit_opens_to_the_result_hash(layout: Layout) -> None:
    units = digests(layout)
    tree = JobTree(layout, b"".join(units))
    for index, digest in enumerate(units):
        opening = tree.open(index)
        assert fold_opening(layout, opening, digest) == tree.result_hash
        segment = layout.segment_of(index)
        expected = tree.segment_root(segment - 1) if segment else None
        assert verify_previous(layout, opening, tree.result_hash) == expected
    for bad in (-1, layout.count):
        with pytest.raises(InvalidProof):
            tree.open(bad)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_tree_is_the_rfcs_over_padded_digests(layout: Layout) -> None:
    units = digests(layout)
    data: list[bytes] = []
    for segment in range(layout.segments):
        data += units[segment * layout.units : (segment + 1) * layout.units]
        data += [bytes(32)] * (layout.padded - layout.units)
    assert len(data) == layout.leaves
    leaves = [merkle.leaf_hash(item) for item in data]
    tree = JobTree(layout, b"".join(units))
    assert tree.result_hash == merkle.root(leaves)
    roots = [merkle.root(leaves[s * layout.padded : (s + 1) * layout.padded]) for s in range(layout.segments)]
    assert [tree.segment_root(s) for s in range(layout.segments)] == roots
    assert merkle.root(roots) == tree.result_hash
    assert [data[layout.leaf_index(i)] for i in range(layout.count)] == units


def test_only_several_segments_are_padded() -> None:
    assert (Layout(1, 5).padded, Layout(1, 5).leaves) == (5, 5)
    assert (Layout(3, 5).padded, Layout(3, 5).leaves, Layout(3, 5).count) == (8, 24, 15)
    assert Layout(3, 1).padded == 1
    assert Layout(3, 5).leaf_index(5) == 8
    for segments, units in ((0, 1), (1, 0), (-1, 1)):
        with pytest.raises(InvalidArgument):
            Layout(segments, units)


@pytest.mark.parametrize("layout", [x for x in LAYOUTS if x.count > 1], ids=str)
def test_tampered_openings_are_refused(layout: Layout) -> None:
    units = digests(layout)
    tree = JobTree(layout, b"".join(units))
    for index in {0, layout.count // 2, layout.count - 1}:
        opening, digest = tree.open(index), units[index]

        def folds(opening: Opening, digest: bytes) -> bool:
            try:
                return fold_opening(layout, opening, digest) == tree.result_hash
            except InvalidProof:
                return False

        assert folds(opening, digest)
        assert not folds(opening, bytes(32))
        assert not folds(opening, digest[:31])
        assert not folds(replace(opening, index=(index + 1) % layout.count), digest)
        assert not folds(replace(opening, index=layout.count), digest)
        assert not folds(replace(opening, path=opening.path[1:]), digest)
        assert not folds(replace(opening, path=(*opening.path, bytes(32))), digest)
        for at in range(len(opening.path)):
            path = (*opening.path[:at], bytes(32), *opening.path[at + 1 :])
            if path != opening.path:
                assert not folds(replace(opening, path=path), digest)


def test_a_forged_previous_root_is_refused() -> None:
    layout = Layout(4, 3)
    tree = JobTree(layout, b"".join(digests(layout)))
    opening = tree.open(7)
    other = tree.open(10)  # of segment 3: its previous segment is 2, not 1
    for bad in (
        replace(opening, previous_root=bytes(32)),
        replace(opening, previous_root=b""),
        replace(opening, previous_path=()),
        replace(opening, previous_path=(*opening.previous_path, bytes(32))),
        replace(opening, previous_root=other.previous_root, previous_path=other.previous_path),
    ):
        with pytest.raises(InvalidProof):
            verify_previous(layout, bad, tree.result_hash)
    with pytest.raises(InvalidProof):
        verify_previous(layout, opening, bytes(32))
    with pytest.raises(InvalidProof, match="first segment"):
        verify_previous(layout, replace(tree.open(0), previous_root=bytes(32)), tree.result_hash)


def test_a_tree_needs_one_digest_per_unit() -> None:
    for bad in (b"", bytes(32 * 4), bytes(32 * 6), bytes(32 * 5 - 1)):
        with pytest.raises(InvalidArgument):
            JobTree(Layout(1, 5), bad)


HASHES = st.lists(H, max_size=6).map(tuple)
OPENINGS = st.builds(
    lambda index, unit, path, previous: Opening(index, unit, path, *previous),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=40),
    HASHES,
    st.just((b"", ())) | st.tuples(H, HASHES),
)


@given(st.lists(OPENINGS, max_size=4))
def test_openings_have_one_encoding(openings: list[Opening]) -> None:
    encoded = audit.openings_bytes(openings)
    assert parse_openings(encoded) == openings
    for cut in range(1, min(len(encoded), 20)):
        try:
            assert audit.openings_bytes(parse_openings(encoded[:-cut])) == encoded[:-cut]
        except InvalidProof:
            continue


@given(st.binary(max_size=200))
def test_whatever_parses_as_openings_is_canonical(data: bytes) -> None:
    try:
        parsed = parse_openings(data)
    except InvalidProof:
        return
    assert audit.openings_bytes(parsed) == data


def test_openings_layout_is_the_protocols() -> None:
    opening = Opening(3, b"unit", (b"a" * 32,), b"r" * 32, (b"b" * 32,))
    expected = struct.pack(">QI", 3, 4) + b"unit" + struct.pack(">I", 32) + b"a" * 32
    assert audit.openings_bytes([opening]) == expected + struct.pack(">I", 64) + b"r" * 32 + b"b" * 32


@pytest.mark.parametrize("length", [1, 31, 33, 66 * 32, 2**32 - 1])
def test_impossible_paths_are_refused_before_they_are_read(length: int) -> None:
    with pytest.raises(InvalidProof):
        parse_openings(struct.pack(">QII", 0, 0, length) + bytes(66 * 32 + 4))


def test_transcript_digest_is_the_protocols_formula() -> None:
    body = LEAF + SEED + struct.pack(">IQ", 8, 1000) + sha256(b"openings").digest()
    assert audit.transcript_digest(LEAF, SEED, 8, 1000, b"openings", True) == tagged(
        "computemesh.v1/transcript", body + b"\x01"
    )
    assert audit.transcript_digest(LEAF, SEED, 8, 1000, b"openings", False) == tagged(
        "computemesh.v1/transcript", body + b"\x00"
    )
    unopened = LEAF + bytes(32) + struct.pack(">IQ", 8, 4) + sha256(b"").digest() + b"\x01"
    assert audit.transcript_digest(LEAF, None, 8, 4, b"", True) == tagged(
        "computemesh.v1/transcript", unopened
    )
    for bad in ((b"", SEED, 1, 1), (LEAF, b"", 1, 1), (LEAF, SEED, -1, 1), (LEAF, SEED, 1, 2**64)):
        with pytest.raises(InvalidArgument):
            audit.transcript_digest(*bad, b"", True)
