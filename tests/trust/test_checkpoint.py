"""Signed notes and checkpoints, held against Go's published example."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from computemesh.trust.checkpoint import Checkpoint, NoteSigner, NoteVerifier, open_note, sign_note
from computemesh.trust.errors import InvalidArgument, InvalidProof

# The example of golang.org/x/mod/sumdb/note.
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_SKEY = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_TEXT = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
)
GO_LINE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZIn"
    "NIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
GO_NOTE = GO_TEXT + "\n" + GO_LINE
GO_SEED = base64.b64decode(GO_SKEY.split("+", 4)[4])[1:]

SIGNER = NoteSigner("computemesh-local/blocks", bytes(range(32)))
VERIFIER = NoteVerifier(SIGNER.vkey)
POINT = Checkpoint("computemesh-local/blocks", 42, bytes(range(32)))


def test_gos_example_note_opens_and_is_reproduced() -> None:
    assert open_note(GO_NOTE, [NoteVerifier(GO_VKEY)]) == GO_TEXT
    signer = NoteSigner("PeterNeumann", GO_SEED)
    assert signer.vkey == GO_VKEY
    assert sign_note(GO_TEXT, signer) == GO_NOTE


def test_checkpoint_round_trips_through_a_note() -> None:
    note = sign_note(POINT.body(), SIGNER)
    assert Checkpoint.parse(open_note(note, [VERIFIER])) == POINT
    assert POINT.body() == "computemesh-local/blocks\n42\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"


def test_extension_lines_are_kept() -> None:
    point = Checkpoint("o", 0, bytes(32), ("first", "second"))
    assert Checkpoint.parse(point.body()) == point


@pytest.mark.parametrize(
    "text",
    [
        "",
        "o\n1\n",
        "o\n1\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "\n1\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
        "o\n01\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
        "o\n-1\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
        "o\n18446744073709551616\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
        "o\n\u0661\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
        "o\n1\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8\n",
        "o\n1\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9=\n",
        "o\n1\nAAEC\n",
        "o\n1\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n\n",
    ],
)
def test_malformed_checkpoints_are_refused(text: str) -> None:
    with pytest.raises(InvalidProof):
        Checkpoint.parse(text)


def test_any_changed_character_of_the_text_voids_the_note() -> None:
    note = sign_note(POINT.body(), SIGNER)
    for at in range(len(POINT.body())):
        other = "x" if note[at] != "x" else "y"
        with pytest.raises(InvalidProof):
            open_note(note[:at] + other + note[at + 1 :], [VERIFIER])


def test_signatures_of_unknown_keys_are_skipped_and_never_suffice() -> None:
    note = sign_note(POINT.body(), SIGNER) + GO_LINE
    assert open_note(note, [VERIFIER]) == POINT.body()
    with pytest.raises(InvalidProof, match="no signature of a trusted key"):
        open_note(sign_note(POINT.body(), NoteSigner(SIGNER.name, bytes(32))), [VERIFIER])
    with pytest.raises(InvalidProof, match="no signature of a trusted key"):
        open_note(note, [])


def test_a_known_keys_wrong_signature_refuses_the_whole_note() -> None:
    note = sign_note(POINT.body(), SIGNER) + GO_LINE
    with pytest.raises(InvalidProof, match="PeterNeumann is wrong"):
        open_note(note, [VERIFIER, NoteVerifier(GO_VKEY)])


@pytest.mark.parametrize(
    "note",
    [
        "",
        "text\n",
        "text\n\n",
        "text\n\nno dash\n",
        "text\n\n— name\n",
        "text\n\n— name !!!!\n",
        "text\n\n— name AAAA\n",
        "text\n\n— a+b AAAAAAAA\n",
        "text\n\n-- PeterNeumann AAAAAAAA\n",
        GO_NOTE[:-1],
        GO_NOTE.replace("cryptography", "crypto\tgraphy"),
        GO_TEXT + "\n" + GO_LINE * 101,
        "x" * 1_000_001,
    ],
)
def test_malformed_notes_are_refused(note: str) -> None:
    with pytest.raises(InvalidProof):
        open_note(note, [NoteVerifier(GO_VKEY)])


@given(st.text(alphabet=st.characters(codec=None), max_size=200))
def test_garbage_is_refused_and_nothing_else_is_raised(text: str) -> None:
    for attempt in (text, text + "\n\n" + GO_LINE, GO_TEXT + "\n" + text + "\n"):
        with pytest.raises(InvalidProof):
            open_note(attempt, [NoteVerifier(GO_VKEY)])
    with pytest.raises(InvalidProof):
        NoteVerifier(text)


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "PeterNeumann",
        GO_VKEY.replace("c74f20a3", "c74f20a4"),
        GO_VKEY.replace("c74f20a3", "C74F20A3"),
        GO_VKEY.replace("Peter", "Pater"),
        GO_VKEY.replace("ARpc", "Ahpc"),
        GO_VKEY[:-4],
        "Peter Neumann" + GO_VKEY[12:],
        "\ud800" + GO_VKEY,
    ],
)
def test_malformed_vkeys_are_refused(vkey: str) -> None:
    with pytest.raises(InvalidProof):
        NoteVerifier(vkey)


def test_unsignable_text_and_names_are_refused() -> None:
    for text in ("no newline", "tab\there\n", "\ud800\n"):
        with pytest.raises(InvalidProof):
            sign_note(text, SIGNER)
    for name in ("", "a b", "a+b", "a\nb"):
        with pytest.raises(InvalidArgument):
            NoteSigner(name, bytes(32))
    with pytest.raises(InvalidArgument):
        NoteSigner("name", bytes(31))
