"""What requests are called, and which error an answer stands for."""

from __future__ import annotations

import json

import pytest

from datum_router.errors import (
    ClusterConflict,
    ClusterError,
    ClusterForbidden,
    ClusterNotFound,
    ClusterRejected,
    ClusterUnavailable,
)
from datum_router_kubernetes.answers import MAX_MESSAGE_CHARS, VersionUnusable, describe, error_of


@pytest.mark.parametrize(
    ("method", "path", "query", "expected"),
    [
        ("GET", "/api/v1/pods", {}, "list pods"),
        ("GET", "/api/v1/namespaces", {"watch": "1"}, "watch namespaces"),
        ("GET", "/api/v1/namespaces/shop", {}, "get namespaces shop"),
        (
            "GET",
            "/api/v1/namespaces/shop/secrets",
            {"watch": "true", "fieldSelector": "metadata.name=tls"},
            "watch secrets tls in namespace shop",
        ),
        ("GET", "/apis/router.datum.net/v1alpha1/vpcroutes", {"limit": "5"}, "list vpcroutes.router.datum.net"),
        (
            "PATCH",
            "/apis/router.datum.net/v1alpha1/namespaces/a/vpcroutes/r/status",
            {"fieldManager": "x"},
            "patch vpcroutes.router.datum.net/status r in namespace a",
        ),
        ("POST", "/api/v1/namespaces", {}, "create namespaces"),
        ("PUT", "/api/v1/namespaces/a/finalize", {}, "update namespaces/finalize a"),
        (
            "DELETE",
            "/apis/coordination.k8s.io/v1/namespaces/a/leases/l",
            {},
            "delete leases.coordination.k8s.io l in namespace a",
        ),
        ("GET", "/version", {}, "get /version"),
    ],
)
def test_requests_are_named_by_verb_and_resource(method: str, path: str, query: dict[str, str], expected: str) -> None:
    assert describe(method, path, query) == expected


def status(code: int, reason: str, message: str, **details: object) -> bytes:
    return json.dumps(
        {"kind": "Status", "code": code, "reason": reason, "message": message, "details": details}
    ).encode()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (400, ClusterRejected),
        (401, ClusterForbidden),
        (403, ClusterForbidden),
        (404, ClusterNotFound),
        (409, ClusterConflict),
        (410, VersionUnusable),
        (413, ClusterRejected),
        (422, ClusterRejected),
        (429, ClusterUnavailable),
        (500, ClusterUnavailable),
        (503, ClusterUnavailable),
        (302, ClusterError),
    ],
)
def test_each_status_has_its_error(code: int, expected: type[ClusterError]) -> None:
    error = error_of("list pods", code, "", status(code, "Because", "of this"))
    assert type(error) is expected
    assert error.status == code
    assert str(error) == f"list pods: the API answered {code} Because: of this"


def test_a_rejection_names_the_fields() -> None:
    body = status(422, "Invalid", "bad", causes=[{"field": "spec.port", "message": "must be a port", "reason": "X"}])
    error = error_of("create x", 422, "", body)
    assert isinstance(error, ClusterRejected)
    assert error.causes == (("spec.port", "must be a port"),)


@pytest.mark.parametrize(
    ("field", "details", "expected"),
    [
        ("3", {}, 3.0),
        ("", {"retryAfterSeconds": 7}, 7.0),
        ("2", {"retryAfterSeconds": 7}, 2.0),
        ("-1", {}, 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", {}, 0.0),
        ("999999999", {}, 300.0),
    ],
)
def test_the_wait_that_the_api_asks_for(field: str, details: dict[str, object], expected: float) -> None:
    assert error_of("x", 429, field, status(429, "TooManyRequests", "", **details)).retry_after_s == expected


@pytest.mark.parametrize("body", [b"", b"<html>secret</html>", b"{", b"[1]", b'{"data": {"token": "secret"}}', b"\xff"])
def test_a_body_that_is_no_status_is_not_shown(body: bytes) -> None:
    assert str(error_of("get secrets tls", 500, "", body)) == "get secrets tls: the API answered 500"


def test_long_messages_are_cut() -> None:
    assert len(str(error_of("x", 500, "", status(500, "R" * 500, "m" * 5000)))) < MAX_MESSAGE_CHARS + 120


def test_a_version_from_before_the_apis_data_was_restored_is_unusable() -> None:
    body = status(504, "Timeout", "Too large resource version: 9", causes=[{"reason": "ResourceVersionTooLarge"}])
    assert isinstance(error_of("watch pods", 504, "", body), VersionUnusable)
