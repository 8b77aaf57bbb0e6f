"""Signatures: the RFC's own example, and nothing that was altered in any way is accepted."""

from __future__ import annotations

import base64
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdc_core.delivery import signing
from mdc_core.errors import FormatError, SignatureError

# RFC 8037, appendix A: private key, thumbprint, signing input, signature.
RFC_KEY = {
    "kty": "OKP",
    "crv": "Ed25519",
    "d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
}
RFC_THUMBPRINT = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
RFC_INPUT = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
RFC_SIGNATURE = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"

KEY = signing.PrivateKey(bytes(range(32)))
KEYSET = signing.jwks([KEY.public])
TOKEN = signing.sign(b'{"name":"digits"}', KEY)


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed_with_header(header: Any, key: signing.PrivateKey = KEY, payload: bytes = b"x") -> str:
    text = f"{encode(json.dumps(header).encode())}.{encode(payload)}"
    return f"{text}.{encode(key.signature(text.encode()))}"


def header(**changes: Any) -> dict[str, Any]:
    given = {"alg": "EdDSA", "kid": KEY.kid, "typ": signing.TYPE, **changes}
    return {name: value for name, value in given.items() if value is not None}


def test_the_example_of_rfc_8037() -> None:
    key = signing.load_private_keys(json.dumps({"keys": [RFC_KEY]}))[0]
    assert key.kid == RFC_THUMBPRINT
    assert encode(key.signature(RFC_INPUT.encode())) == RFC_SIGNATURE
    assert key.public.to_jwk()["x"] == RFC_KEY["x"]


@given(payload=st.binary(max_size=300), seed=st.binary(min_size=32, max_size=32))
def test_what_is_signed_is_read_back(payload: bytes, seed: bytes) -> None:
    key = signing.PrivateKey(seed)
    token = signing.sign(payload, key)
    others = [signing.PrivateKey(bytes(32)).public, key.public]
    assert signing.verify(token, signing.jwks(others)) == payload
    assert signing.sign(payload, key) == token


@given(bit=st.integers(0, 8 * len(TOKEN) - 1))
def test_any_flipped_bit_is_refused(bit: int) -> None:
    damaged = bytearray(TOKEN.encode())
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SignatureError):
        signing.verify(damaged.decode("latin-1"), KEYSET)


@given(position=st.integers(0, len(TOKEN)), text=st.text(min_size=1, max_size=4))
def test_any_inserted_text_is_refused(position: int, text: str) -> None:
    with pytest.raises(SignatureError):
        signing.verify(TOKEN[:position] + text + TOKEN[position:], KEYSET)


@given(length=st.integers(0, len(TOKEN) - 1))
def test_any_shorter_token_is_refused(length: int) -> None:
    with pytest.raises(SignatureError):
        signing.verify(TOKEN[:length], KEYSET)


@given(text=st.text(max_size=60))
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(SignatureError):
        signing.verify(text, KEYSET)


def test_the_header_that_is_accepted_is_the_only_one() -> None:
    assert signing.verify(signed_with_header(header()), KEYSET) == b"x"
    headers: tuple[object, ...] = (
        header(alg="none"),
        header(alg="HS256"),
        header(alg=None),
        header(kid="another"),
        header(kid=None),
        header(kid=["x"]),
        header(typ="JWT"),
        header(typ=None),
        header(crit=["b64"]),
        [],
        "EdDSA",
    )
    for changed in headers:
        with pytest.raises(SignatureError):
            signing.verify(signed_with_header(changed), KEYSET)


def test_neither_no_signature_nor_the_public_key_as_a_secret_will_do() -> None:
    text = f"{encode(json.dumps(header(alg='none')).encode())}.{encode(b'x')}"
    with pytest.raises(SignatureError, match="none"):
        signing.verify(f"{text}.", KEYSET)
    text = f"{encode(json.dumps(header(alg='HS256')).encode())}.{encode(b'x')}"
    code = hmac.digest(KEY.public.x, text.encode(), "sha256")
    with pytest.raises(SignatureError, match="HS256"):
        signing.verify(f"{text}.{encode(code)}", KEYSET)


def test_another_key_under_the_trusted_id_is_refused() -> None:
    forger = signing.new_key()
    with pytest.raises(SignatureError, match="signature"):
        signing.verify(signed_with_header(header(), forger), KEYSET)


def test_a_key_set_may_hold_keys_of_other_kinds() -> None:
    other = {"kty": "RSA", "kid": KEY.kid, "n": "x", "e": "AQAB"}
    assert signing.verify(TOKEN, {"keys": [other, "nonsense", *KEYSET["keys"]]})
    for keyset in ({}, {"keys": "x"}, {"keys": [other]}, {"keys": [{**KEYSET["keys"][0], "x": "AAAA"}]}):
        with pytest.raises(SignatureError):
            signing.verify(TOKEN, keyset)


def test_private_keys_are_read_back_in_their_order() -> None:
    keys = (signing.new_key(), signing.new_key())
    text = signing.dump_private_keys(keys)
    assert "\n" not in text
    assert signing.load_private_keys(text) == keys
    assert signing.load_private_keys(json.dumps({"keys": [keys[0].to_jwk()]})) == keys[:1]


def test_nothing_secret_is_shown_or_published() -> None:
    secret = KEY.to_jwk()["d"]
    assert secret not in json.dumps(KEYSET)
    assert "seed" not in repr(KEY)
    for broken in (json.dumps(KEY.to_jwk())[:-1], json.dumps({"keys": [{**RFC_KEY, "d": secret}]})):
        with pytest.raises(FormatError) as caught:
            signing.load_private_keys(broken)
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"keys": []}', '{"keys": [1]}', signing.dump_private_keys([KEY, KEY])]
)
def test_what_is_no_private_key_set(text: str) -> None:
    with pytest.raises(FormatError):
        signing.load_private_keys(text)
