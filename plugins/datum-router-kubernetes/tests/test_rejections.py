"""What the API's ways to refuse an object mean; the texts are those of Kubernetes 1.36."""

from __future__ import annotations

import pytest

from datum_router.errors import ClusterConflict, ClusterError, ClusterRejected, ClusterUnavailable
from datum_router_kubernetes.rejections import rejection_of

TYPED = (
    "patch vpcservices.router.datum.net shop in namespace t: the API answered 500: failed to create typed patch object "
    "(t/shop; router.datum.net/v1alpha1, Kind=VPCService): "
)


@pytest.mark.parametrize(
    ("text", "causes"),
    [
        (TYPED + ".spec.colour: field not declared in schema", (("spec.colour", "field not declared in schema"),)),
        (TYPED + ".bar: field not declared in schema", (("bar", "field not declared in schema"),)),
        (
            TYPED + "errors:\n  .spec.port: expected numeric (int or float), got string\n  .spec.tls: expected map, "
            'got &{"a: b"}',
            (
                ("spec.port", "expected numeric (int or float), got string"),
                ("spec.tls", 'expected map, got &{"a: b"}'),
            ),
        ),
        (
            TYPED + '.spec.listeners[name="a.b"].port: field not declared in schema',
            (('spec.listeners[name="a.b"].port', "field not declared in schema"),),
        ),
        (TYPED + "something else", ()),
    ],
)
def test_what_apply_says_of_types_is_a_rejection(text: str, causes: tuple[tuple[str, str], ...]) -> None:
    told = rejection_of(ClusterUnavailable(text, status=500))
    assert isinstance(told, ClusterRejected)
    assert told.causes == causes
    assert str(told) == text


def test_what_strict_decoding_says_are_causes() -> None:
    text = (
        'create configmaps: the API answered 400 BadRequest: strict decoding error: unknown field "dta", '
        'duplicate field "metadata.name"'
    )
    told = rejection_of(ClusterRejected(text, status=400))
    assert isinstance(told, ClusterRejected)
    assert told.causes == (("dta", "unknown field"), ("metadata.name", "duplicate field"))


@pytest.mark.parametrize(
    "error",
    [
        ClusterUnavailable("the API answered 500: etcdserver: request timed out", status=500),
        ClusterUnavailable("no answer: failed to create typed patch object"),
        ClusterConflict('Apply failed with 1 conflict: conflict with "user": .spec.port', status=409),
        ClusterRejected("is invalid", status=422, causes=(("spec.port", "Invalid value"),)),
    ],
)
def test_other_errors_stay_what_they_are(error: ClusterError) -> None:
    assert rejection_of(error) is error


def test_causes_are_bounded() -> None:
    text = TYPED + "errors:\n" + "\n".join(f"  .spec.f{n}: no" for n in range(500))
    told = rejection_of(ClusterUnavailable(text, status=500))
    assert isinstance(told, ClusterRejected)
    assert len(told.causes) == 64
