"""Tokens and keys: what is taken, and every way of RFC 8725 in which one may be wrong."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from datum_router_jwt.config import ALGORITHMS, Config, read
from datum_router_jwt.filter import UNAVAILABLE, Jwt
from datum_router_jwt.keys import MAX_FETCHES, MAX_JWKS_BYTES, RETRY_S, UNKNOWN_KEY_S, KeyStore, read_keys
from datum_router_jwt.token import MAX_TOKEN_BYTES, Claims, Refused, verify
from hypothesis import given
from hypothesis import strategies as st

from datum_router.filters.pending import Answer, Failed, Pending
from datum_router.model.request import Headers, RequestHead
from datum_router.model.route import PluginFilter
from datum_router.model.service import ServiceKey
from datum_router.reasons import Reason

NOW = 1_800_000_000.0
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
WEAK_KEY = rsa.generate_private_key(public_exponent=65537, key_size=1024)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()
CONFIG = Config(
    issuer="https://issuer.test",
    audiences=("shop", "api"),
    algorithms=ALGORITHMS,
    required_claims={"scope": "cart:read", "groups": "staff"},
)
GOOD: dict[str, Any] = {
    "iss": "https://issuer.test",
    "aud": ["api"],
    "exp": NOW + 60,
    "nbf": NOW - 60,
    "iat": NOW - 60,
    "scope": "cart:read cart:write",
    "groups": ["staff"],
}


def jwk(key: Any, kid: str, algorithm: str, **more: object) -> dict[str, object]:
    made = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    return {**made, "kid": kid, "use": "sig", **more}


def jwks(*keys: dict[str, object]) -> bytes:
    return json.dumps({"keys": keys}).encode()


SET = jwks(
    jwk(RSA_KEY, "rsa", "RS256"),
    jwk(EC_KEY, "ec", "ES256"),
    jwk(ED_KEY, "ed", "EdDSA"),
    {"kty": "oct", "kid": "secret", "k": "AAAA"},
    {"kty": "??"},
)
KEYS = read_keys(SET, ALGORITHMS)


def sign(claims: dict[str, Any] | None = None, key: Any = RSA_KEY, algorithm: str = "RS256", **header: Any) -> bytes:
    return jwt.encode(GOOD if claims is None else claims, key, algorithm=algorithm, headers=header).encode()


def parts(*parts: object) -> bytes:
    texts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in parts]
    return b".".join(base64.urlsafe_b64encode(text).rstrip(b"=") for text in texts)


def said(token: bytes, config: Config = CONFIG) -> str:
    found = verify(token, KEYS, config, now=NOW)
    return found.said if isinstance(found, Refused) else ""


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [
        (RSA_KEY, "RS256", "rsa"), (RSA_KEY, "PS512", "rsa"), (EC_KEY, "ES256", "ec"), (ED_KEY, "EdDSA", "ed"),
        (RSA_KEY, "RS384", None),
    ],
)  # fmt: skip
def test_a_good_token_is_taken_whoever_signs_it(key: Any, algorithm: str, kid: str | None) -> None:
    token = sign(key=key, algorithm=algorithm, **({"kid": kid} if kid else {}))
    found = verify(token, KEYS, CONFIG, now=NOW)
    assert isinstance(found, Claims)
    assert found.values["iss"] == "https://issuer.test"
    assert found.payload == token.split(b".")[1]


@pytest.mark.parametrize("alg", ["none", "None", "nOnE", ""])
def test_no_signature_is_no_token(alg: str) -> None:
    head = parts({"alg": alg, "typ": "JWT"}, GOOD)
    for token in (head + b".", head + b".AAAA", head):
        assert said(token) in ("the token is no signed JWT", "the token is signed by an algorithm that is not allowed")


@pytest.mark.parametrize("secret", [SET, b"public", b""])
def test_a_public_key_is_no_secret(secret: bytes) -> None:
    public = RSA_KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    head = parts({"alg": "HS256", "kid": "rsa"}, GOOD)
    mac = hmac.HMAC(public if secret == b"public" else secret or b"x", hashes.SHA256())
    mac.update(head)
    token = head + b"." + base64.urlsafe_b64encode(mac.finalize()).rstrip(b"=")
    assert said(token) == "the token is signed by an algorithm that is not allowed"


def test_symmetric_algorithms_cannot_even_be_configured() -> None:
    text = msgspec.json.encode({"issuer": "i", "audiences": ["a"], "algorithms": ["RS256", "HS256"]}).decode()
    with pytest.raises(msgspec.ValidationError, match="algorithm 'HS256'"):
        read(text, has_service=True)


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (sign(key=OTHER_KEY, kid="rsa"), "the token's signature is wrong"),
        (sign(kid="nobody"), "the token is signed by a key that is not known"),
        (sign(kid="ec"), "the token is signed by a key that is not known"),
        (sign()[:-8] + b"AAAAAAAA", "the token's signature is wrong"),
        (sign(crit=["x"], x=1), "the token is no signed JWT"),
        (b"a.b", "the token is no signed JWT"),
        (b"a.b.c.d.e", "the token is no signed JWT"),
        (b"..", "the token is no signed JWT"),
        (b"\xff.\xff.\xff", "the token is no signed JWT"),
        (b"a." + b"b" * MAX_TOKEN_BYTES + b".c", "the token is no signed JWT"),
    ],
)
def test_what_is_not_signed_as_it_must_be_is_refused(token: bytes, expected: str) -> None:
    assert said(token) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"exp": NOW - 61}, "the token has expired"),
        ({"exp": NOW - 60}, "the token has expired"),
        ({"exp": NOW - 59}, ""),
        ({"exp": None}, "the token has no exp: it would never expire"),
        ({"exp": "soon"}, "the token's exp is no time"),
        ({"exp": True}, "the token's exp is no time"),
        ({"nbf": NOW + 61}, "the token is not valid yet"),
        ({"nbf": NOW + 60}, ""),
        ({"iat": NOW + 61}, "the token is not valid yet"),
        ({"iss": "https://evil.test"}, "the token is of another issuer"),
        ({"iss": None}, "the token is of another issuer"),
        ({"aud": "shop"}, ""),
        ({"aud": "other"}, "the token is for another audience"),
        ({"aud": None}, "the token is for another audience"),
        ({"aud": {"api": 1}}, "the token is for another audience"),
        ({"scope": "cart:reads"}, "the token does not say what is required of scope"),
        ({"groups": None}, "the token does not say what is required of groups"),
        ({"groups": 7}, "the token does not say what is required of groups"),
    ],
)
def test_claims_are_held_to_the_settings(change: dict[str, Any], expected: str) -> None:
    claims = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    token = parts({"alg": "RS256", "kid": "rsa"}, claims)
    signature = jwt.get_algorithm_by_name("RS256").sign(token, RSA_KEY)
    assert said(token + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")) == expected


# --- keys ------------------------------------------------------------------------------------------------------------


def test_only_keys_that_verify_signatures_are_read() -> None:
    assert [(key.id, "HS256" in key.algorithms) for key in KEYS] == [("rsa", False), ("ec", False), ("ed", False)]
    assert KEYS[1].algorithms == {"ES256"}, "a curve goes with one algorithm (RFC 7518 section 3.4)"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"keys": 7}',
        jwks(),
        jwks(jwk(RSA_KEY, "a", "RS256", use="enc")),
        jwks(jwk(RSA_KEY, "a", "RS256", key_ops=["sign"])),
        jwks(jwk(RSA_KEY, "a", "RS256", alg="RSA-OAEP")),
        jwks({**jwk(RSA_KEY, "a", "RS256"), "d": "AAAA"}),
        jwks(jwk(WEAK_KEY, "a", "RS256")),
        b" " * (MAX_JWKS_BYTES + 1),
    ],
)
def test_a_set_without_a_key_that_can_be_used_is_none(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"key|JSON"):
        read_keys(text, ALGORITHMS)


def made_store() -> KeyStore:
    return KeyStore(("RS256",), cache_s=300, stale_s=3600, timeout_s=1)


def test_keys_are_fetched_before_they_are_old_and_serve_on_until_they_are_too_old() -> None:
    store = made_store()
    assert store.usable(0) == ()
    assert store.may_wait(0)
    store.begin(0)
    assert store.take(SET, 1) == ""
    assert not store.is_due(300)
    assert store.is_due(302)
    store.begin(302)
    assert not store.is_due(303), "one fetch on the side is enough"
    assert store.fail("no answer", 303) == "no answer"
    assert not store.is_due(303.5)
    assert store.is_due(303 + RETRY_S)
    assert store.usable(3601)
    assert store.usable(3602) == ()


def test_what_is_fetched_in_vain_leaves_the_keys_as_they_were() -> None:
    store = made_store()
    store.take(SET, 0)
    assert store.take(b"<html>", 10) == "no JSON Web Key Set"
    assert [key.id for key in store.usable(10)] == ["rsa"]


def test_why_there_are_no_keys_is_logged_as_it_comes_up(caplog: pytest.LogCaptureFixture) -> None:
    now, store = 0.0, made_store()
    service = ServiceKey("default/issuer")
    found = Jwt(PluginFilter(name="jwt", service=service), CONFIG, store, wall=lambda: NOW, monotonic=lambda: now)
    head = RequestHead(
        method="GET",
        authority="a.test",
        host="a.test",
        path="/",
        headers=Headers([(b"authorization", b"Bearer " + sign())]),
    )

    def fetch(outcome: Answer | Failed) -> object:
        pending = found.on_request(head)
        assert isinstance(pending, Pending)
        return pending.resume(outcome)

    outcomes: list[tuple[Answer | Failed, str]] = [
        (Failed(reason=Reason.CONNECT_FAILED), "connect_failed"),
        (Failed(reason=Reason.CONNECT_FAILED), ""),
        (Answer(status=404), "status 404"),
        (Answer(status=200, body=b"<html>"), "no JSON Web Key Set"),
        (Answer(status=200, body=SET, is_cut=True), f"a key set of more than {MAX_JWKS_BYTES} bytes"),
    ]
    for outcome, why in outcomes:
        caplog.clear()
        assert fetch(outcome) is UNAVAILABLE
        assert [record.__dict__["error"] for record in caplog.records] == ([why] if why else [])
        now += RETRY_S
    assert isinstance(fetch(Answer(status=200, body=SET)), RequestHead)
    assert store.problem == ""


def test_few_requests_wait_for_keys_and_those_that_left_are_forgotten() -> None:
    store = made_store()
    for _ in range(MAX_FETCHES):
        assert store.may_wait(0)
        store.begin(0)
    assert not store.may_wait(1)
    assert store.may_wait(2.1)
    store.fail("no answer", 2.1)
    assert not store.may_wait(2.2), "it has just failed"


def test_unknown_keys_are_asked_for_now_and_then() -> None:
    store = made_store()
    store.take(SET, 0)
    assert not store.may_ask_for_unknown(UNKNOWN_KEY_S - 1)
    assert store.may_ask_for_unknown(UNKNOWN_KEY_S)
    assert not store.may_ask_for_unknown(UNKNOWN_KEY_S + 1)
    assert store.may_ask_for_unknown(2 * UNKNOWN_KEY_S)


@given(
    st.lists(
        st.tuples(st.sampled_from(["request", "unknown", "good", "bad", "leave"]), st.floats(0, 2000, allow_nan=False)),
        max_size=60,
    )
)
def test_whatever_happens_keys_are_fresh_fetches_few_and_the_issuer_left_in_peace(
    events: list[tuple[str, float]],
) -> None:
    store, now, fetched_at, failed_at = made_store(), 0.0, None, None
    asked: list[float] = []
    waiting = 0
    for kind, pause in events:
        now += pause
        keys = store.usable(now)
        assert bool(keys) == (fetched_at is not None and now - fetched_at <= 3600)
        if kind == "request" and (store.is_due(now) if keys else store.may_wait(now)):
            assert failed_at is None or now - failed_at >= RETRY_S
            store.begin(now)
            waiting += 1
        elif kind == "unknown" and keys and store.may_ask_for_unknown(now):
            assert all(now - before >= UNKNOWN_KEY_S for before in asked)
            assert fetched_at is not None
            assert now - fetched_at >= UNKNOWN_KEY_S
            asked.append(now)
            store.begin(now)
            waiting += 1
        elif kind in ("good", "bad") and waiting:
            waiting -= 1
            is_good = kind == "good"
            assert (store.take(SET if is_good else b"{}", now) == "") is is_good
            fetched_at, failed_at = (now, None) if is_good else (fetched_at, now)
        elif kind == "leave" and waiting:
            waiting -= 1  # whoever waited has left: nobody tells the store
        assert len(store._waiting) <= MAX_FETCHES + 1
