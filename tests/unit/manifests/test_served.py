"""No field is ignored silently: each stands in the table of what is served or of what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from datum_router.compiler.diagnostics import Origin
from datum_router.manifests.decode import decode
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.schema import FieldRow, field_rows
from datum_router.manifests.served import NOT_SERVED, ONLY_SERVED, SERVED
from datum_router.manifests.table import KindTable, ResourceKind
from datum_router.reasons import Reason

TABLE = KindTable(OWN_KINDS)
ORIGIN = Origin(source="test")


def whole(row: FieldRow) -> bool:
    return row.not_served is not None and not row.not_served.values


@pytest.mark.parametrize("kind", OWN_KINDS, ids=lambda kind: kind.kind)
def test_every_field_is_either_served_or_refused(kind: ResourceKind) -> None:
    rows = list(field_rows(kind))
    leaves = {row.path for row in rows if row.is_leaf}
    refused = {row.path for row in rows if whole(row)}
    assert leaves - refused == set(SERVED[kind.kind])


@pytest.mark.parametrize("kind", OWN_KINDS, ids=lambda kind: kind.kind)
def test_the_tables_name_only_fields_that_exist(kind: ResourceKind) -> None:
    known = {"spec"} | {row.path for row in field_rows(kind)}
    assert {entry.path for entry in NOT_SERVED[kind.kind]} <= known
    assert {path for path, _, _ in ONLY_SERVED.get(kind.kind, ())} <= known


def test_every_refusal_says_what_to_use_instead() -> None:
    for entries in NOT_SERVED.values():
        for entry in entries:
            assert entry.hint


BASE: dict[str, dict[str, object]] = {
    "VPCService": {"port": 80, "endpoints": [{"address": "10.0.0.1"}]},
    "VPCRoute": {"destinations": [{"vpcServiceRef": {"name": "s"}}]},
    "ServiceBinding": {"serviceRef": {"name": "a"}, "vpcServiceRef": {"name": "b"}},
    "VPCIngress": {"host": "a.example", "rules": [{"service": {"name": "s"}}]},
    "VPCEgress": {},
}
LOADED = {"vpcServiceRef": {"name": "s"}}
MIRROR = {"vpcServiceRef": {"name": "s"}}
SELECTOR = {"matchLabels": {"a": "b"}}

# One value for every row of NOT_SERVED, at the path it is given at.
CASES: list[tuple[str, str, str, Mapping[str, object]]] = [
    *[
        ("VPCService", "spec.discovery.method", "spec.discovery.method", {"discovery": {"method": method}})
        for method in ("dns",)
    ],
    ("VPCService", "spec.discovery.dnsName", "spec.discovery.dnsName", {"discovery": {"dnsName": "a.example"}}),
    ("VPCService", "spec.tunnel", "spec.tunnel", {"tunnel": {"connectorRef": {"name": "c"}}}),
    *[
        (
            "VPCRoute",
            f"spec.destinations[].filters[].{name}",
            f"spec.destinations[0].filters[0].{name}",
            {"destinations": [LOADED | {"filters": [{"type": kind, field: value}]}]},
        )
        for kind, field, value in (
            ("RequestRedirect", "requestRedirect", {"scheme": "https"}),
            ("RequestMirror", "requestMirror", MIRROR),
            ("RateLimit", "rateLimit", {"requests": 1}),
            ("FaultInjection", "faultInjection", {"abort": {"status": 503}}),
            ("Plugin", "plugin", {"name": "p"}),
        )
        for name in ("type", field)
    ],
    *[
        ("VPCRoute", f"spec.circuitBreaker.{name}", f"spec.circuitBreaker.{name}", {"circuitBreaker": {name: 7}})
        for name in ("maxConnections", "maxPendingRequests")
    ],
    (
        "VPCRoute",
        "spec.parentRefs[].kind",
        "spec.parentRefs[0].kind",
        {"parentRefs": [{"kind": "Gateway", "name": "g"}]},
    ),
    (
        "ServiceBinding",
        "spec.portMappings[].protocol",
        "spec.portMappings[0].protocol",
        {"portMappings": [{"servicePort": 53, "protocol": "UDP"}]},
    ),
    *[
        (
            "VPCIngress",
            f"spec.rules[].{name}",
            f"spec.rules[0].{name}",
            {"rules": [{"service": {"name": "s"}, name: value}]},
        )
        for name, value in (("vpcAttachmentName", "a"),)
    ],
    *[
        ("VPCIngress", f"spec.tls.{name}", f"spec.tls.{name}", {"tls": {"secretName": "s", name: value}})
        for name, value in (("secretVersion", "2"),)
    ],
    *[("VPCIngress", f"spec.{name}", f"spec.{name}", {name: value}) for name, value in (("vpcAttachmentName", "a"),)],
    ("VPCEgress", "spec.connectorRef", "spec.connectorRef", {"connectorRef": {"name": "c"}}),
    ("VPCEgress", "spec.retries.hedging", "spec.retries.hedging", {"retries": {"hedging": {"delay": "1s"}}}),
    ("VPCEgress", "spec.timeouts.propagate", "spec.timeouts.propagate", {"timeouts": {"propagate": True}}),
    (
        "VPCEgress",
        "spec.timeouts.backendRequest",
        "spec.timeouts.backendRequest",
        {"timeouts": {"backendRequest": "1s"}},
    ),
    *[
        ("VPCEgress", f"spec.retries.{name}", f"spec.retries.{name}", {"retries": {name: value}})
        for name, value in (
            ("perTryTimeout", "1s"),
            ("retryOn", ["reset"]),
            ("budgetPercent", 10),
            ("retryNonIdempotent", True),
        )
    ],
]


@pytest.mark.parametrize(
    ("kind", "row", "path", "change"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_field_that_nothing_serves_is_refused_by_name(
    kind: str, row: str, path: str, change: Mapping[str, object]
) -> None:
    raw = {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": kind,
        "metadata": {"name": "x"},
        "spec": {**BASE[kind], **change},
    }
    decoded = decode(raw, ORIGIN, TABLE)
    assert decoded.manifest is None
    found = [item for item in decoded.diagnostics if item.path == path and item.reason is Reason.NOT_SERVED]
    assert len(found) == 1, [item.render() for item in decoded.diagnostics]
    assert "not served yet" in found[0].message
    assert found[0].hint


def test_the_cases_above_cover_every_row() -> None:
    rows = {(kind, entry.path) for kind, entries in NOT_SERVED.items() for entry in entries}
    rows |= {(kind, path) for kind, entries in ONLY_SERVED.items() for path, _, _ in entries}
    assert rows == {(kind, row) for kind, row, _, _ in CASES}


def written_defaults() -> Iterator[tuple[str, dict[str, object]]]:
    yield (
        "VPCService",
        {"discovery": {"method": "manual"}, "exportTo": {"namespaces": "Same"}, "tls": {"mode": "Disable"}},
    )
    yield "VPCService", {"discovery": {"method": "attachment"}, "exportTo": {"namespaces": "All"}}
    yield "VPCRoute", {"retries": {"retryNonIdempotent": False}, "locality": {"spilloverPercent": 70}, "cors": None}
    yield "VPCRoute", {"match": {"grpcService": "a.B", "grpcMatchType": "Exact"}, "timeouts": {}}
    yield "ServiceBinding", {"portMappings": [{"servicePort": 80, "protocol": "TCP"}]}
    yield "VPCIngress", {"httpsRedirect": False, "clientIP": {"proxyProtocol": False, "trustedHops": 2}}
    yield "VPCIngress", {"tls": {"secretName": "s", "mode": "terminate", "cipherSuites": []}}


@pytest.mark.parametrize(("kind", "change"), list(written_defaults()))
def test_a_default_that_is_written_down_is_no_request(kind: str, change: Mapping[str, object]) -> None:
    raw = {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": kind,
        "metadata": {"name": "x"},
        "spec": {**BASE[kind], **change},
    }
    assert decode(raw, ORIGIN, TABLE).diagnostics == ()
