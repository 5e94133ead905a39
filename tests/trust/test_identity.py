"""Keys, signatures, addresses, tagged digests and envelopes."""

from __future__ import annotations

from hashlib import sha256

import coincurve
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from computemesh.trust import envelope, identity
from computemesh.trust.digest import tagged
from computemesh.trust.errors import InvalidArgument

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
ONE = identity.PrivateKey((1).to_bytes(32, "big"))
KEY = identity.PrivateKey(sha256(b"a worker").digest())
DIGEST = sha256(b"what is signed").digest()


def test_key_one_has_the_address_of_the_protocol() -> None:
    assert ONE.public.hex() == "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
    assert ONE.address == "cpc1w508d6qejxtdg4y5r3zarvary0c5xw7k32stzz"
    assert identity.address_bytes(ONE.public).hex() == "751e76e8199196d454941c45d1b3a323f1433bd6"
    assert identity.decode_address(ONE.address) == identity.address_bytes(ONE.public)


def test_signature_is_the_rfc_6979_one_of_known_vectors() -> None:
    # From the secp256k1 vectors of bitcointalk 285142, which trezor-crypto and other libraries test against.
    digest = sha256(b"Satoshi Nakamoto").digest()
    assert ONE.sign(digest).hex() == (
        "934b1ea10a4b3c1757e2b0c017d0b6143ce3c9a7e6a4a49860d7a6ab210ee3d8"
        "2442ce9d2b916064108014783e923ec36b49743e2ffa1c4496f01a512aafd9e5"
    )


@settings(max_examples=50)
@given(st.binary(min_size=32, max_size=32))
def test_signature_verifies_and_is_low_s(digest: bytes) -> None:
    signature = KEY.sign(digest)
    assert identity.verify(KEY.public, digest, signature)
    assert int.from_bytes(signature[32:], "big") <= ORDER // 2
    assert not identity.verify(ONE.public, digest, signature)


def test_high_s_is_refused() -> None:
    signature = KEY.sign(DIGEST)
    high = signature[:32] + (ORDER - int.from_bytes(signature[32:], "big")).to_bytes(32, "big")
    assert identity.verify(KEY.public, DIGEST, signature)
    assert not identity.verify(KEY.public, DIGEST, high)


@settings(max_examples=200)
@given(st.binary(max_size=70), st.binary(max_size=40), st.binary(max_size=70))
def test_verify_never_raises_on_garbage(public: bytes, digest: bytes, signature: bytes) -> None:
    assert not identity.verify(public, digest, signature)


@pytest.mark.parametrize("signature", [bytes(64), b"\xff" * 64, ORDER.to_bytes(32, "big") * 2])
def test_scalars_outside_the_group_are_refused(signature: bytes) -> None:
    assert not identity.verify(KEY.public, DIGEST, signature)


def test_only_compressed_points_on_the_curve_are_keys() -> None:
    uncompressed = coincurve.PrivateKey(KEY.secret).public_key.format(compressed=False)
    signature = KEY.sign(DIGEST)
    assert not identity.verify(uncompressed, DIGEST, signature)
    assert not identity.verify(b"\x05" + KEY.public[1:], DIGEST, signature)
    assert not identity.valid_public_key(b"\x02" + b"\xff" * 32)
    assert not identity.valid_public_key(uncompressed)
    assert identity.valid_public_key(KEY.public)


@settings(max_examples=100)
@given(st.integers(0, 63), st.integers(1, 255))
def test_any_changed_byte_voids_a_signature(at: int, mask: int) -> None:
    signature = bytearray(KEY.sign(DIGEST))
    signature[at] ^= mask
    assert not identity.verify(KEY.public, DIGEST, bytes(signature))


@pytest.mark.parametrize("secret", [b"", bytes(31), bytes(33), bytes(32), ORDER.to_bytes(32, "big")])
def test_secrets_outside_the_group_are_refused(secret: bytes) -> None:
    with pytest.raises(InvalidArgument):
        identity.PrivateKey.from_bytes(secret)


def test_a_key_survives_storage_and_never_prints_its_secret() -> None:
    fresh = identity.PrivateKey.generate()
    again = identity.PrivateKey.from_bytes(fresh.secret)
    assert (again.public, again.address) == (fresh.public, fresh.address)
    assert fresh.secret.hex() not in repr(fresh)
    with pytest.raises(InvalidArgument):
        fresh.sign(b"short")


@settings(max_examples=50)
@given(st.binary(min_size=20, max_size=20))
def test_address_round_trips(raw: bytes) -> None:
    address = identity.encode_address(raw)
    assert identity.decode_address(address) == raw
    assert identity.decode_address(address.upper()) == raw


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("", "start with cpc1"),
        ("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", "start with cpc1"),
        ("cpc1w508d6qejxtdg4y5r3zarvary0c5xw7k32stz", "characters"),
        ("cpc1" + "q" * 100_000, "characters"),
        ("cpc1w508d6qejxtdg4y5r3zarvary0c5xw7k32stzq", "checksum"),
        ("cpc1W508d6qejxtdg4y5r3zarvary0c5xw7k32stzz", "case"),
        ("cpc1b508d6qejxtdg4y5r3zarvary0c5xw7k32stzz", "'b'"),
        ("cpc1w508d6qejxtdg4y5r3zarvary0c5xw7k32st\n\x00", "character"),
        (None, "text"),
    ],
)
def test_bad_address_says_what_is_wrong(address: str, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem) as caught:
        identity.decode_address(address)
    assert caught.value.violations[0][0] == "address"


def test_one_wrong_character_is_always_noticed() -> None:
    for at in range(4, len(ONE.address)):
        other = "q" if ONE.address[at] != "q" else "p"
        with pytest.raises(InvalidArgument, match="checksum"):
            identity.decode_address(ONE.address[:at] + other + ONE.address[at + 1 :])


def test_addresses_of_wrong_lengths_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        identity.encode_address(bytes(19))
    with pytest.raises(InvalidArgument):
        identity.address_of(bytes(32))


def test_tagged_hash_is_that_of_bip_340() -> None:
    # BIP 340 test vector 0: the nonce's tagged hash of its zero auxiliary randomness is a public constant
    # (bip340_aux tag over 32 zero bytes, as libsecp256k1 hard-codes it in nonce_function_bip340).
    assert tagged("BIP0340/aux", bytes(32)).hex() == (
        "54f169cfc9e2e5727480441f90ba25c488f461c70b5ea5dcaaf7af69270aa514"
    )
    prefix = sha256(b"a tag").digest() * 2
    assert tagged("a tag", b"data") == sha256(prefix + b"data").digest()


def test_envelope_is_the_protocols_formula_and_binds_domain_and_chain() -> None:
    expected = tagged("computemesh.v1/order", sha256(b"computemesh-local").digest() + b"body")
    assert envelope.digest("order", "computemesh-local", b"body") == expected
    signature = envelope.sign(KEY, "order", "a", b"body")
    assert envelope.verify(KEY.public, "order", "a", b"body", signature)
    assert not envelope.verify(KEY.public, "token", "a", b"body", signature)
    assert not envelope.verify(KEY.public, "order", "b", b"body", signature)
    assert not envelope.verify(KEY.public, "order", "a", b"bodY", signature)
    assert not envelope.verify(ONE.public, "order", "a", b"body", signature)
