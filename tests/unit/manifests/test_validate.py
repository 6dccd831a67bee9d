"""Rules between fields, and text whose grammar a pattern cannot hold: one case a rule."""

from __future__ import annotations

import pytest

from datum_router.compiler.diagnostics import Diagnostic, Origin, Severity
from datum_router.manifests.decode import decode
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.rules import is_prime, next_prime
from datum_router.manifests.table import KindTable
from datum_router.manifests.vpcroute import MAX_REGEX_BYTES
from datum_router.reasons import Reason

TABLE = KindTable(OWN_KINDS)
ENDPOINT = {"address": "10.0.0.1"}
DESTINATION = {"vpcServiceRef": {"name": "s"}}
BASE: dict[str, dict[str, object]] = {
    "VPCService": {"port": 80, "endpoints": [ENDPOINT]},
    "VPCRoute": {"destinations": [DESTINATION]},
    "ServiceBinding": {"serviceRef": {"name": "a"}, "vpcServiceRef": {"name": "b"}},
    "VPCIngress": {"host": "a.example"},
}
INVALID, MISSING, EXCLUSIVE = Reason.INVALID_VALUE, Reason.MISSING_FIELD, Reason.MUTUALLY_EXCLUSIVE


def found(kind: str, change: dict[str, object]) -> tuple[Diagnostic, ...]:
    raw = {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": kind,
        "metadata": {"name": "x"},
        "spec": BASE[kind] | change,
    }
    decoded = decode(raw, Origin(source="test"), TABLE)
    is_bad = any(item.severity is Severity.ERROR for item in decoded.diagnostics)
    assert (decoded.manifest is None) == is_bad
    return decoded.diagnostics


def match(**parts: object) -> dict[str, object]:
    return {"match": parts}


def filters(*items: object, **match_parts: object) -> dict[str, object]:
    return {"filters": list(items), "match": match_parts or {"pathPrefix": "/a"}}


def redirect(**parts: object) -> dict[str, object]:
    return {"type": "RequestRedirect", "requestRedirect": parts}


def rewrite(**parts: object) -> dict[str, object]:
    return {"type": "URLRewrite", "urlRewrite": parts}


def modifier(**parts: object) -> dict[str, object]:
    return {"type": "RequestHeaderModifier", "requestHeaderModifier": parts}


def prefix(text: str) -> dict[str, object]:
    return {"type": "ReplacePrefixMatch", "replacePrefixMatch": text}


ERRORS = [
    # endpoints
    ("VPCService", {"endpoints": []}, "spec.vpcAttachmentRef", MISSING),
    ("VPCService", {"endpoints": [], "discovery": {"method": "manual"}}, "spec.vpcAttachmentRef", MISSING),
    ("VPCService", {"endpoints": [{"address": "10.0.0.1/24"}]}, "spec.endpoints[0].address", INVALID),
    ("VPCService", {"endpoints": [{"address": "[fd00::1]"}]}, "spec.endpoints[0].address", INVALID),
    ("VPCService", {"endpoints": [{"address": "fe80::1%eth0"}]}, "spec.endpoints[0].address", INVALID),
    ("VPCService", {"endpoints": [{"address": "backend.local"}]}, "spec.endpoints[0].address", INVALID),
    ("VPCService", {"endpoints": [{"address": "0.0.0.0"}]}, "spec.endpoints[0].address", INVALID),
    ("VPCService", {"endpoints": [{"address": "ff02::1"}]}, "spec.endpoints[0].address", INVALID),
    ("VPCService", {"endpoints": [ENDPOINT, ENDPOINT | {"port": 80}]}, "spec.endpoints[1]", INVALID),
    ("VPCService", {"endpoints": [{"address": "::ffff:10.0.0.1"}]}, "spec.endpoints[0].address", INVALID),
    ("VPCService", {"connectTimeout": "0s"}, "spec.connectTimeout", INVALID),
    ("VPCService", {"labels": {"not a key": "x"}}, "spec.labels['not a key']", INVALID),
    ("VPCService", {"topology": {"zone": "a b"}}, "spec.topology.zone", INVALID),
    # health checks
    ("VPCService", {"healthCheck": {"httpPath": "healthz"}}, "spec.healthCheck.httpPath", INVALID),
    ("VPCService", {"healthCheck": {"httpPath": "/a/../b"}}, "spec.healthCheck.httpPath", INVALID),
    ("VPCService", {"healthCheck": {"httpPath": "/a?b#c"}}, "spec.healthCheck.httpPath", INVALID),
    ("VPCService", {"healthCheck": {"type": "TCP", "httpPath": "/a"}}, "spec.healthCheck.httpPath", EXCLUSIVE),
    ("VPCService", {"healthCheck": {"type": "TCP", "headers": [{"name": "a", "value": ""}]}},
     "spec.healthCheck.headers", EXCLUSIVE),
    ("VPCService", {"healthCheck": {"type": "GRPC", "method": "GET"}}, "spec.healthCheck.method", EXCLUSIVE),
    ("VPCService", {"healthCheck": {"grpcService": "a.B"}}, "spec.healthCheck.grpcService", EXCLUSIVE),
    ("VPCService", {"healthCheck": {"host": "a b"}}, "spec.healthCheck.host", INVALID),
    ("VPCService", {"healthCheck": {"host": "a:99999"}}, "spec.healthCheck.host", INVALID),
    ("VPCService", {"healthCheck": {"host": "a:"}}, "spec.healthCheck.host", INVALID),
    ("VPCService", {"healthCheck": {"httpPath": "/a?b\tc"}}, "spec.healthCheck.httpPath", INVALID),
    ("VPCService", {"healthCheck": {"expectedStatuses": ["299-200"]}}, "spec.healthCheck.expectedStatuses[0]", INVALID),
    ("VPCService", {"healthCheck": {"expectedStatuses": ["600"]}}, "spec.healthCheck.expectedStatuses[0]", INVALID),
    ("VPCService", {"healthCheck": {"unhealthyThreshold": 0}}, "spec.healthCheck.unhealthyThreshold", INVALID),
    ("VPCService", {"healthCheck": {"headers": [{"name": "Host", "value": "a"}]}},
     "spec.healthCheck.headers[0].name", INVALID),
    ("VPCService", {"healthCheck": {"passive": {"interval": "0s"}}}, "spec.healthCheck.passive.interval", INVALID),
    # upstream TLS: settings never vanish because TLS is off
    ("VPCService", {"protocol": "HTTP", "tls": {"sni": "a.example"}}, "spec.tls.mode", EXCLUSIVE),
    ("VPCService", {"protocol": "HTTPS", "tls": {"mode": "Disable"}}, "spec.tls.mode", EXCLUSIVE),
    ("VPCService", {"protocol": "H2C", "tls": {"mode": "Simple"}}, "spec.tls.mode", EXCLUSIVE),
    ("VPCService", {"protocol": "HTTPS", "tls": {"sni": "*.example"}}, "spec.tls.sni", INVALID),
    ("VPCService", {"protocol": "HTTPS", "tls": {"insecureSkipVerify": True, "caCertificateRefs": [{"name": "a"}]}},
     "spec.tls.insecureSkipVerify", EXCLUSIVE),
    # matches
    ("VPCRoute", {"match": {"exactPath": "/a"}, "matches": [{"exactPath": "/b"}]}, "spec.matches", EXCLUSIVE),
    ("VPCRoute", match(exactPath="/a", pathPrefix="/b"), "spec.match", EXCLUSIVE),
    ("VPCRoute", match(pathRegex="/a", grpcService="a.B"), "spec.match", EXCLUSIVE),
    ("VPCRoute", match(grpcMethod="Get"), "spec.match.grpcService", MISSING),
    ("VPCRoute", match(pathPrefix="api"), "spec.match.pathPrefix", INVALID),
    ("VPCRoute", match(pathPrefix="/a/../b"), "spec.match.pathPrefix", INVALID),
    ("VPCRoute", match(pathPrefix="/a/%2E%2e/b"), "spec.match.pathPrefix", INVALID),
    ("VPCRoute", match(pathPrefix="/a//b"), "spec.match.pathPrefix", INVALID),
    ("VPCRoute", match(exactPath="/a?b"), "spec.match.exactPath", INVALID),
    ("VPCRoute", match(exactPath="/a#b"), "spec.match.exactPath", INVALID),
    ("VPCRoute", match(exactPath="/a%2"), "spec.match.exactPath", INVALID),
    ("VPCRoute", match(exactPath="/a%2fb"), "spec.match.exactPath", INVALID),
    ("VPCRoute", match(exactPath="/a\\b"), "spec.match.exactPath", INVALID),
    ("VPCRoute", match(pathRegex="a" * (MAX_REGEX_BYTES + 1)), "spec.match.pathRegex", INVALID),
    ("VPCRoute", match(pathRegex="ä"), "spec.match.pathRegex", INVALID),
    ("VPCRoute", match(methods=["get"]), "spec.match.methods[0]", INVALID),
    ("VPCRoute", match(headers={":path": "/"}), "spec.match.headers[':path']", INVALID),
    ("VPCRoute", match(headers={"Connection": "close"}), "spec.match.headers.Connection", INVALID),
    ("VPCRoute", match(headers={"Host": "a"}), "spec.match.headers.Host", INVALID),
    ("VPCRoute", match(headers={"X-A": "1", "x-a": "2"}), "spec.match.headers.x-a", EXCLUSIVE),
    ("VPCRoute", match(headerMatches=[{"name": "x", "type": "Present", "value": "a"}]),
     "spec.match.headerMatches[0].value", EXCLUSIVE),
    ("VPCRoute", match(headerMatches=[{"name": "x"}]), "spec.match.headerMatches[0].value", MISSING),
    ("VPCRoute", match(headerMatches=[{"name": "te", "type": "Present"}]), "spec.match.headerMatches[0].name", INVALID),
    ("VPCRoute", match(queryParamMatches=[{"name": "x", "type": "Prefix", "value": ""}]),
     "spec.match.queryParamMatches[0].value", INVALID),
    ("VPCRoute", match(queryParamMatches=[{"name": "x", "type": "RegularExpression", "value": ""}]),
     "spec.match.queryParamMatches[0].value", INVALID),
    ("VPCRoute", match(sourceCIDRs=["10.0.0.0/33"]), "spec.match.sourceCIDRs[0]", INVALID),
    ("VPCRoute", match(sourceCIDRs=["10.0.0.0/255.0.0.0"]), "spec.match.sourceCIDRs[0]", INVALID),
    ("VPCRoute", match(sourceCIDRs=["10.0.0.0/08"]), "spec.match.sourceCIDRs[0]", INVALID),
    ("VPCRoute", match(sourceCIDRs=["::ffff:10.0.0.0/104"]), "spec.match.sourceCIDRs[0]", INVALID),
    ("VPCRoute", match(headers={f"x-{n}": "1" for n in range(17)}), "spec.match.headers", INVALID),
    ("VPCRoute", {"matches": [{}, {"pathPrefix": "a"}]}, "spec.matches[1].pathPrefix", INVALID),
    # host names
    *[
        ("VPCRoute", {"hostnames": [name]}, "spec.hostnames[0]", INVALID)
        for name in (
            "*", "a.*.b", "*a.b", "a..b", "a.b.", "a:80", "http://a", "-a.b", "10.0.0.1", "[fd00::1]", "a_b", "ä.b",
            "\u212a.b",
        )
    ],
    ("VPCRoute", {"hostnames": [f"h{n}.example" for n in range(17)]}, "spec.hostnames", INVALID),
    # destinations and filters
    ("VPCRoute", {"destinations": []}, "spec.destinations", MISSING),
    ("VPCRoute", filters(redirect(hostname="b.example")), "spec.destinations", EXCLUSIVE),
    ("VPCRoute", {"destinations": [], **filters(redirect(statusCode=304, scheme="https"))},
     "spec.filters[0].requestRedirect.statusCode", INVALID),
    ("VPCRoute", {"destinations": [], **filters(redirect())}, "spec.filters[0].requestRedirect", MISSING),
    ("VPCRoute", {"destinations": [], **filters(redirect(hostname="*.b"))},
     "spec.filters[0].requestRedirect.hostname", INVALID),
    ("VPCRoute", {"destinations": [], **filters(redirect(scheme="https"), rewrite(hostname="b"))},
     "spec.filters[1]", EXCLUSIVE),
    ("VPCRoute", filters(rewrite()), "spec.filters[0].urlRewrite", MISSING),
    ("VPCRoute", filters(rewrite(hostname="b"), rewrite(hostname="c")), "spec.filters[1]", EXCLUSIVE),
    ("VPCRoute", filters(rewrite(path=prefix("/v1")), exactPath="/a"),
     "spec.filters[0].urlRewrite.path.type", EXCLUSIVE),
    ("VPCRoute", {"filters": [rewrite(path=prefix("/v1"))], "matches": [{"pathPrefix": "/a"}, {"pathPrefix": "/b"}]},
     "spec.filters[0].urlRewrite.path.type", EXCLUSIVE),
    ("VPCRoute", {"filters": [rewrite(path=prefix("/v1"))]}, "spec.filters[0].urlRewrite.path.type", EXCLUSIVE),
    ("VPCRoute", filters(rewrite(path={"type": "ReplaceFullPath"})),
     "spec.filters[0].urlRewrite.path.replaceFullPath", MISSING),
    ("VPCRoute",
     filters(rewrite(path={"type": "ReplaceFullPath", "replaceFullPath": "/a", "replacePrefixMatch": "/b"})),
     "spec.filters[0].urlRewrite.path.replacePrefixMatch", EXCLUSIVE),
    ("VPCRoute", filters(rewrite(path=prefix("v1"))), "spec.filters[0].urlRewrite.path.replacePrefixMatch", INVALID),
    ("VPCRoute", filters({"type": "URLRewrite"}), "spec.filters[0].urlRewrite", MISSING),
    ("VPCRoute", filters(modifier(remove=["x"]) | {"urlRewrite": {"hostname": "b"}}), "spec.filters[0].urlRewrite",
     EXCLUSIVE),
    ("VPCRoute", filters(modifier()), "spec.filters[0].requestHeaderModifier", MISSING),
    ("VPCRoute", filters(modifier(remove=["Host"])), "spec.filters[0].requestHeaderModifier.remove[0]", INVALID),
    ("VPCRoute", filters(modifier(set=[{"name": "content-length", "value": "0"}])),
     "spec.filters[0].requestHeaderModifier.set[0].name", INVALID),
    ("VPCRoute", filters(modifier(add=[{"name": "transfer-encoding", "value": "x"}])),
     "spec.filters[0].requestHeaderModifier.add[0].name", INVALID),
    ("VPCRoute", filters(modifier(set=[{"name": "X", "value": "1"}], remove=["x"])),
     "spec.filters[0].requestHeaderModifier.remove[0]", EXCLUSIVE),
    # balancing, retries, timeouts
    ("VPCRoute", {"loadBalancing": "consistent-hash", "loadBalancingConfig": {"hashOn": "Header"}},
     "spec.loadBalancingConfig.headerName", MISSING),
    ("VPCRoute", {"loadBalancing": "consistent-hash", "loadBalancingConfig": {"hashOn": "Cookie"}},
     "spec.loadBalancingConfig.cookie", MISSING),
    ("VPCRoute", {"loadBalancing": "consistent-hash", "loadBalancingConfig": {"hashOn": "QueryParam"}},
     "spec.loadBalancingConfig.queryParam", MISSING),
    ("VPCRoute", {"loadBalancing": "consistent-hash", "loadBalancingConfig": {"headerName": "x"}},
     "spec.loadBalancingConfig.headerName", EXCLUSIVE),
    ("VPCRoute", {"loadBalancing": "consistent-hash", "loadBalancingConfig": {"tableSize": 65536}},
     "spec.loadBalancingConfig.tableSize", INVALID),
    ("VPCRoute", {"loadBalancing": "consistent-hash", "loadBalancingConfig": {"algorithm": "Ring", "tableSize": 251}},
     "spec.loadBalancingConfig.tableSize", EXCLUSIVE),
    ("VPCRoute", {"loadBalancing": "round-robin", "loadBalancingConfig": {"hashOn": "Path"}},
     "spec.loadBalancingConfig", EXCLUSIVE),
    ("VPCRoute", {"retries": {"retryOnStatus": [600]}}, "spec.retries.retryOnStatus[0]", INVALID),
    ("VPCRoute", {"retries": {"backoff": {"initialMs": 20, "maxMs": 10}}}, "spec.retries.backoff.initialMs", INVALID),
    ("VPCRoute", {"timeouts": {"connect": "0s"}}, "spec.timeouts.connect", INVALID),
    ("VPCRoute", {"timeouts": {"request": "soon"}}, "spec.timeouts.request", INVALID),
    # bindings and ingresses
    ("ServiceBinding", {"portMappings": [{"servicePort": 80}, {"servicePort": 81, "vpcPort": 80}]},
     "spec.portMappings[1]", EXCLUSIVE),
    ("VPCIngress", {"host": "*"}, "spec.host", INVALID),
    ("VPCIngress", {"hosts": ["a b"]}, "spec.hosts[0]", INVALID),
    ("VPCIngress", {"rules": [{"path": "a", "service": {"name": "s"}}]}, "spec.rules[0].path", INVALID),
    ("VPCIngress", {"listeners": [{"name": "a", "port": 80}, {"name": "b", "port": 80}]}, "spec.listeners[1].port",
     EXCLUSIVE),
    ("VPCIngress", {"listeners": [{"name": "a", "port": 80}, {"name": "a", "port": 81}]}, "spec.listeners[1].name",
     EXCLUSIVE),
    ("VPCIngress", {"listeners": [{"name": "a", "port": 443, "protocol": "HTTPS"}]}, "spec.tls", MISSING),
    ("VPCIngress", {"tls": {"secretName": "s", "alpn": ["h2", "h2"]}}, "spec.tls.alpn", INVALID),
    ("VPCIngress", {"tls": {"secretName": "s", "alpn": ["h3"]}}, "spec.tls.alpn[0]", INVALID),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "path", "reason"), ERRORS)
def test_a_broken_rule_is_reported_once_at_its_path(
    kind: str, change: dict[str, object], path: str, reason: Reason
) -> None:
    errors = [item for item in found(kind, change) if item.severity is Severity.ERROR]
    assert [(item.path, item.reason) for item in errors] == [(path, reason)], [item.render() for item in errors]


WARNINGS = [
    ("VPCService", {"endpoints": [ENDPOINT | {"weight": 0}]}, "spec.endpoints", "503"),
    ("VPCRoute", {"destinations": [DESTINATION | {"weight": 0}]}, "spec.destinations", "500"),
    ("VPCRoute", match(sourceCIDRs=["10.0.0.1/8"]), "spec.match.sourceCIDRs[0]", "used as 10.0.0.0/8"),
    ("VPCRoute", {"hostnames": ["a.example", "A.example"]}, "spec.hostnames[1]", "second time"),
    ("VPCRoute", {"retries": {"perTryTimeout": "30s"}}, "spec.retries.perTryTimeout", "timeoutSeconds (30) ends"),
    (
        "VPCRoute",
        {"retries": {"perTryTimeout": "3s"}, "timeouts": {"request": "2s"}},
        "spec.retries.perTryTimeout",
        "timeouts.request (2s) ends",
    ),
    (
        "VPCRoute",
        {"retries": {"perTryTimeout": "1s", "hedging": {"delay": "1s"}}},
        "spec.retries.hedging.delay",
        "ends an attempt before that",
    ),
    (
        "VPCIngress",
        {"tls": {"secretName": "s"}, "listeners": [{"name": "a", "port": 80}]},
        "spec.tls",
        "no listener speaks HTTPS",
    ),
    *(
        (kind, {"rateLimit": {"requests": 1, "keys": ["SourceIP", f"Header:{name}"]}}, "spec.rateLimit.keys[1]", words)
        for kind in ("VPCRoute", "VPCIngress")
        for name, words in (
            ("Content-Length", "tells no requests apart"),
            ("expect", "tells no requests apart"),
            ("X-Request-Id", "nothing is limited"),
        )
    ),
    *(
        ("VPCRoute", {"sessionAffinity": {"type": "Header", "name": name}}, "spec.sessionAffinity.name", "no session")
        for name in ("Expect", "X-Datum-Session", "proxy-session", "x-request-id")
    ),
]


@pytest.mark.parametrize(("kind", "change", "path", "words"), WARNINGS)
def test_what_may_surprise_is_a_warning_and_the_object_is_used(
    kind: str, change: dict[str, object], path: str, words: str
) -> None:
    (item,) = found(kind, change)
    assert (item.severity, item.path) == (Severity.WARNING, path)
    assert words in item.message


GOOD = [
    ("VPCService", {"endpoints": [], "vpcAttachmentRef": {"name": "a"}}),
    ("VPCService", {"endpoints": [], "discovery": {"method": "kubernetes"}}),
    ("VPCService", {"endpoints": [{"address": "fd00::1", "weight": 0}, {"address": "fd00::1", "port": 81}]}),
    ("VPCService", {"protocol": "GRPC", "healthCheck": {"grpcService": "a.B", "host": "a.example:80"}}),
    ("VPCService", {"healthCheck": {"httpPath": "/a?full=1", "expectedStatuses": ["200-299", "404"]}}),
    ("VPCService", {"protocol": "GRPC", "tls": {"mode": "Simple", "sni": "a.example"}}),
    ("VPCRoute", match(pathPrefix="/caf%C3%A9", methods=["GET", "M-SEARCH"])),
    ("VPCRoute", match(exactPath="/café au lait")),
    ("VPCRoute", match(headerMatches=[{"name": "x", "value": ""}, {"name": "y", "type": "Present", "invert": True}])),
    ("VPCRoute", match(sourceCIDRs=["10.0.0.1", "fd00::/8"])),
    ("VPCRoute", {"hostnames": ["*.example.com", "localhost", "xn--caf-dma.example"]}),
    ("VPCRoute", filters(rewrite(path=prefix("")))),
    ("VPCRoute", filters(modifier(add=[{"name": "via", "value": "a"}, {"name": "via", "value": "b"}]))),
    ("VPCRoute", {"destinations": [], **filters(redirect(scheme="https", statusCode=308))}),
    ("VPCRoute", {"loadBalancing": "round-robin", "loadBalancingConfig": {"slowStart": "30s"}}),
    ("VPCRoute", {"loadBalancing": "consistent-hash", "loadBalancingConfig": {"algorithm": "Ring", "hashOn": "Path"}}),
    ("VPCRoute", {"loadBalancing": "first-healthy", "loadBalancingConfig": {"hashOn": "Path"}}),
    ("VPCRoute", {"loadBalancing": "random", "timeouts": {"request": "0s", "connect": "250ms"}}),
    ("VPCIngress", {"hosts": ["*.b.example"], "tls": {"secretName": "s", "minVersion": "1.3", "alpn": ["h2"]}}),
]


@pytest.mark.parametrize(("kind", "change"), GOOD)
def test_what_is_right_passes_without_a_word(kind: str, change: dict[str, object]) -> None:
    assert found(kind, change) == ()


def test_hints_say_how_to_mend_it() -> None:
    (address,) = found("VPCService", {"endpoints": [{"address": "10.0.0.1/24"}]})
    assert address.hint == "leave out the prefix length: 10.0.0.1"
    (both,) = found("VPCService", {"endpoints": [{"address": "[fd00::1]:8080"}]})
    assert both.hint == "write address: fd00::1 and port: 8080"
    (mapped,) = found("VPCService", {"endpoints": [{"address": "::ffff:10.0.0.1"}]})
    assert mapped.hint == "write 10.0.0.1"
    (mask,) = found("VPCRoute", match(sourceCIDRs=["10.0.0.0/255.0.0.0"]))
    assert mask.hint == "write 10.0.0.0/8"
    (table,) = found("VPCRoute", {"loadBalancing": "consistent-hash", "loadBalancingConfig": {"tableSize": 65536}})
    assert table.hint == "the next one is 65537"


@pytest.mark.parametrize(
    ("metadata", "path"),
    [
        ({"labels": {"tier": "a b"}}, "metadata.labels.tier"),
        ({"labels": {"a b": "c"}}, "metadata.labels['a b']"),
        ({"labels": {"a" * 254 + "/b": "c"}}, f"metadata.labels['{'a' * 79}..."),
        ({"annotations": {"/b": "c"}}, "metadata.annotations['/b']"),
    ],
)
def test_labels_that_an_api_server_would_refuse_are_refused(metadata: dict[str, object], path: str) -> None:
    raw = {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCService",
        "metadata": {"name": "x", **metadata},
        "spec": BASE["VPCService"],
    }
    (problem,) = decode(raw, Origin(source="test"), TABLE).diagnostics
    assert problem.path.startswith(path.rstrip("]"))
    assert problem.reason is INVALID


def test_primes() -> None:
    assert [number for number in range(30) if is_prime(number)] == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]
    assert next_prime(24) == 29


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (match(pathRegex="/(a"), "spec.match.pathRegex"),
        (match(pathRegex="/(?!a)b"), "spec.match.pathRegex"),
        (
            match(headerMatches=[{"name": "x", "type": "RegularExpression", "value": "["}]),
            "spec.match.headerMatches[0].value",
        ),
    ],
)
def test_an_expression_that_the_engine_refuses_is_a_bad_version(change: dict[str, object], path: str) -> None:
    pytest.importorskip("re2", reason="patterns need the optional extra datum-router[re2]")
    (problem,) = found("VPCRoute", change)
    assert (problem.path, problem.reason) == (path, INVALID)
    assert "expected a regular expression of RE2: " in problem.message
    assert bool(problem.hint) == ("(?" in problem.message)
