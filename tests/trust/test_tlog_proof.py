"""The text form of a proof: one text per proof, and a clear refusal of everything else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from computemesh.trust import merkle
from computemesh.trust.checkpoint import Checkpoint, NoteSigner, NoteVerifier, sign_note
from computemesh.trust.errors import InvalidProof
from computemesh.trust.tlog_proof import TlogProof

SIGNER = NoteSigner("example.com/log", bytes(range(32)))
ENTRIES = [bytes([number]) * 3 for number in range(7)]
TREE = merkle.Tree([merkle.leaf_hash(entry) for entry in ENTRIES])
NOTE = sign_note(Checkpoint(SIGNER.name, 7, TREE.root).body(), SIGNER)
PROOF = TlogProof(5, tuple(TREE.path(5)), NOTE, ENTRIES[5])


def test_the_text_has_the_lines_of_the_specification() -> None:
    lines = PROOF.text().split("\n")
    assert lines[:3] == ["c2sp.org/tlog-proof@v1", "extra BQUF", "index 5"]
    assert [len(line) for line in lines[3:7]] == [44, 44, 44, 0]
    assert PROOF.text().endswith("\n\n" + NOTE)


def test_every_entrys_proof_reads_back_and_holds() -> None:
    for index, entry in enumerate(ENTRIES):
        proof = TlogProof.parse(TlogProof(index, tuple(TREE.path(index)), NOTE, entry).text())
        assert proof.verify(NoteVerifier(SIGNER.vkey), SIGNER.name).size == 7


def test_a_proof_of_the_only_entry_has_no_hashes() -> None:
    note = sign_note(Checkpoint(SIGNER.name, 1, merkle.leaf_hash(b"")).body(), SIGNER)
    proof = TlogProof.parse(TlogProof(0, (), note, b"").text())
    assert proof.verify(NoteVerifier(SIGNER.vkey), SIGNER.name).size == 1


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("c2sp.org/tlog-proof@v1", "c2sp.org/tlog-proof@v2", "does not begin"),
        ("extra BQUF\n", "", "no line `extra`"),
        ("extra BQUF", "extra BQU", "base64"),
        ("index 5", "index 05", "plain decimal"),
        ("index 5", "index -5", "plain decimal"),
        ("index 5", "index 5 ", "plain decimal"),
        ("index 5\n", "index 5\nAAAA\n", "3 bytes, not 32"),
        ("index 5\n", "index 5\n" + ("A" * 43 + "=\n") * 64, "more than 63"),
        ("\n\n", "\n", "no checkpoint"),
    ],
)
def test_another_form_is_refused_by_name(old: str, new: str, problem: str) -> None:
    text = PROOF.text().replace(old, new, 1 if old != "\n\n" else -1)
    with pytest.raises(InvalidProof, match=problem):
        TlogProof.parse(text)


def test_another_entry_index_or_origin_does_not_hold() -> None:
    verifier = NoteVerifier(SIGNER.vkey)
    for forged in (replace(PROOF, entry=b"x"), replace(PROOF, index=4), replace(PROOF, index=7)):
        with pytest.raises(InvalidProof, match=r"not in (the|a) tree of 7"):
            forged.verify(verifier, SIGNER.name)
    with pytest.raises(InvalidProof, match=r"not of 'example\.com/other'"):
        PROOF.verify(verifier, "example.com/other")
