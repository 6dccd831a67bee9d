from __future__ import annotations

import base64

import pytest

from datum_router.manifests.meta import ObjectMeta
from datum_router.manifests.secret import Secret, has_pem_block, validate_secret
from datum_router.reasons import Reason

CERT = "-----BEGIN CERTIFICATE-----\nQ0VSVA==\n-----END CERTIFICATE-----\n"
KEY = "-----BEGIN EC PRIVATE KEY-----\nS0VZLWNhbmFyeQ==\n-----END EC PRIVATE KEY-----\n"


def secret(data: dict[str, str] | None = None, text: dict[str, str] | None = None, kind: str = "") -> Secret:
    return Secret(
        api_version="v1", kind="Secret", metadata=ObjectMeta(name="s"), type=kind, data=data, string_data=text
    )


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_values_are_read_from_base64_and_from_text() -> None:
    assert secret({"a": encoded("x")}).text("a") == "x"
    assert secret({"a": encoded("x")}, {"a": "y"}).text("a") == "y"
    assert secret({"a": "!!!"}).text("a") is None
    assert secret().text("a") is None


def test_a_whole_pair_is_good_in_either_form() -> None:
    assert not list(
        validate_secret(secret({"tls.crt": encoded(CERT), "tls.key": encoded(KEY)}, None, "kubernetes.io/tls"))
    )
    assert not list(validate_secret(secret(None, {"tls.crt": CERT, "tls.key": KEY})))
    assert not list(validate_secret(secret({"password": "not base64 at all"})))


@pytest.mark.parametrize(
    ("broken", "path", "reason"),
    [
        (secret({"tls.crt": "!!!", "tls.key": encoded(KEY)}), "data['tls.crt']", Reason.INVALID_VALUE),
        (secret({"tls.crt": encoded("junk"), "tls.key": encoded(KEY)}), "data['tls.crt']", Reason.INVALID_VALUE),
        (secret(None, {"tls.crt": CERT, "tls.key": CERT}), "stringData['tls.key']", Reason.INVALID_VALUE),
        (secret({"tls.crt": encoded(CERT)}, None, "kubernetes.io/tls"), "data['tls.key']", Reason.MISSING_FIELD),
    ],
)
def test_a_broken_pair_is_reported_by_key_and_never_by_value(broken: Secret, path: str, reason: Reason) -> None:
    (problem,) = validate_secret(broken)
    assert (problem.path, problem.reason) == (path, reason)
    assert "S0VZ" not in repr(problem)
    assert "canary" not in repr(broken)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CERT, True),
        ("text before\n" + CERT, True),
        (CERT.replace("END", "FIN"), False),
        (CERT.replace("Q0VSVA==", "%%%"), False),
        (KEY, False),
        ("", False),
    ],
)
def test_pem_blocks_are_recognised(text: str, expected: bool) -> None:
    assert has_pem_block(text, "CERTIFICATE") is expected
