"""Decoding: the examples of the front page load unchanged, and everything that is wrong is named with its place."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import msgspec
import pytest

from datum_router.compiler.diagnostics import Diagnostic, Origin, Severity
from datum_router.manifests._walk import KNOWN_METADATA, MAX_GUESSES, MAX_PROBLEMS
from datum_router.manifests.decode import Decoded, decode
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.meta import ObjectKey, ObjectMeta
from datum_router.manifests.problem import Problem
from datum_router.manifests.servicebinding import AddressSource, ServiceBinding
from datum_router.manifests.table import KindTable, ResourceKind
from datum_router.manifests.vpcroute import VPCRoute
from datum_router.manifests.vpcservice import HealthCheckType, Protocol, VPCService
from datum_router.reasons import Reason

API = "router.datum.net/v1alpha1"
TABLE = KindTable(OWN_KINDS)

# The manifests of the front page, word for word.
EXAMPLES: list[dict[str, object]] = [
    {
        "apiVersion": API,
        "kind": "VPCService",
        "metadata": {"name": "my-api", "namespace": "default"},
        "spec": {
            "vpcAttachmentRef": {"name": "vpc-attachment-1"},
            "protocol": "HTTP",
            "port": 8080,
            "healthCheck": {"httpPath": "/healthz", "intervalSeconds": 10},
        },
    },
    {
        "apiVersion": API,
        "kind": "VPCRoute",
        "metadata": {"name": "api-routes", "namespace": "default"},
        "spec": {
            "match": {"pathPrefix": "/api/v1", "methods": ["GET", "POST"]},
            "destinations": [{"vpcServiceRef": {"name": "my-api"}, "weight": 100}],
            "loadBalancing": "round-robin",
        },
    },
    {
        "apiVersion": API,
        "kind": "ServiceBinding",
        "metadata": {"name": "api-binding", "namespace": "default"},
        "spec": {
            "serviceRef": {"name": "api-service"},
            "vpcServiceRef": {"name": "my-api"},
            "portMappings": [{"servicePort": 8080, "vpcPort": 8080}],
            "autoSync": True,
        },
    },
    {
        "apiVersion": API,
        "kind": "VPCService",
        "metadata": {"name": "backend-api", "namespace": "production"},
        "spec": {
            "vpcAttachmentRef": {"name": "prod-vpc"},
            "protocol": "HTTP",
            "port": 8080,
            "healthCheck": {"httpPath": "/health", "intervalSeconds": 10},
        },
    },
    {
        "apiVersion": API,
        "kind": "VPCRoute",
        "metadata": {"name": "api-routing", "namespace": "production"},
        "spec": {
            "match": {"pathPrefix": "/api"},
            "destinations": [{"vpcServiceRef": {"name": "backend-api"}}],
            "loadBalancing": "round-robin",
            "retries": {"maxRetries": 3, "retryOnStatus": [502, 503, 504]},
        },
    },
    {
        "apiVersion": API,
        "kind": "ServiceBinding",
        "metadata": {"name": "api-binding", "namespace": "production"},
        "spec": {"serviceRef": {"name": "api-backend"}, "vpcServiceRef": {"name": "backend-api"}, "autoSync": True},
    },
]


def run(raw: Mapping[str, object], table: KindTable = TABLE, **origin: object) -> Decoded:
    return decode(raw, msgspec.convert({"source": "test", "file": "f.yaml", **origin}, Origin), table)


def obj(kind: str, spec: object, **more: object) -> dict[str, object]:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": "x"}, "spec": spec, **more}


def service(**spec: object) -> dict[str, object]:
    return obj("VPCService", {"port": 80, "endpoints": [{"address": "10.0.0.1"}], **spec})


def route(**spec: object) -> dict[str, object]:
    return obj("VPCRoute", {"destinations": [{"vpcServiceRef": {"name": "s"}}], **spec})


def only(decoded: Decoded) -> Diagnostic:
    assert len(decoded.diagnostics) == 1, [item.render() for item in decoded.diagnostics]
    return decoded.diagnostics[0]


# --- what is good ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", EXAMPLES, ids=lambda raw: f"{raw['kind']}-{raw['metadata']['namespace']}")
def test_every_example_of_the_front_page_decodes_without_a_word(raw: dict[str, object]) -> None:
    before = copy.deepcopy(raw)
    decoded = run(raw)
    assert decoded.diagnostics == ()
    assert decoded.manifest is not None
    assert raw == before
    # What was written is what is read: encoding gives every field of the example back.
    assert_contains(msgspec.to_builtins(decoded.manifest), raw)


def assert_contains(whole: object, part: object) -> None:
    if isinstance(part, dict):
        assert isinstance(whole, dict)
        for name, value in part.items():
            assert_contains(whole[name], value)
    elif isinstance(part, list):
        assert isinstance(whole, list | tuple)
        assert len(whole) == len(part)
        for one, other in zip(whole, part, strict=True):
            assert_contains(one, other)
    else:
        assert whole == part


def test_defaults_are_those_of_the_reference() -> None:
    manifest = run(EXAMPLES[0]).manifest
    assert isinstance(manifest, VPCService)
    health = manifest.spec.health_check
    assert health is not None
    assert (health.timeout_seconds, health.unhealthy_threshold, health.healthy_threshold) == (5, 3, 2)
    assert (manifest.spec.connect_timeout, manifest.spec.idle_timeout) == ("10s", "60s")
    binding = run(EXAMPLES[5]).manifest
    assert isinstance(binding, ServiceBinding)
    assert binding.spec.address_source is AddressSource.ATTACHMENT
    decoded_route = run(EXAMPLES[4]).manifest
    assert isinstance(decoded_route, VPCRoute)
    assert decoded_route.spec.destinations[0].weight == 100
    assert decoded_route.spec.timeout_seconds == 30


def test_the_other_spelling_of_grpc_and_of_source_ip_is_accepted() -> None:
    decoded = run(service(protocol="gRPC", healthCheck={"type": "gRPC"}))
    assert decoded.diagnostics == ()
    assert isinstance(decoded.manifest, VPCService)
    assert decoded.manifest.spec.protocol is Protocol.GRPC
    assert decoded.manifest.spec.health_check is not None
    assert decoded.manifest.spec.health_check.type is HealthCheckType.GRPC
    other = run(route(loadBalancing="source-ip-hash")).manifest
    assert isinstance(other, VPCRoute)
    assert other.spec.load_balancing == "source-ip"


def test_null_means_not_given() -> None:
    decoded = run(service(healthCheck=None, protocol=None))
    assert decoded.diagnostics == ()
    assert isinstance(decoded.manifest, VPCService)
    assert decoded.manifest.spec.protocol is Protocol.HTTP
    assert only(run(service(port=None))).reason is Reason.MISSING_FIELD


def test_the_canonical_form_is_what_the_router_works_with() -> None:
    manifest = run(
        route(
            hostnames=["Shop.Example.COM"],
            match={
                "pathPrefix": "/api/",
                "headers": {"X-Tier": "Gold"},
                "sourceCIDRs": ["fd00:0:0::/32"],
                "methods": ["GET", "GET"],
            },
        )
    ).manifest
    assert isinstance(manifest, VPCRoute)
    match = manifest.spec.match
    assert match is not None
    assert manifest.spec.hostnames == ("shop.example.com",)
    assert (match.path_prefix, match.headers, match.methods) == ("/api", {"x-tier": "Gold"}, ("GET",))
    assert match.source_cidrs == ("fd00::/32",)


def test_the_root_prefix_keeps_its_slash() -> None:
    manifest = run(route(match={"pathPrefix": "/"})).manifest
    assert isinstance(manifest, VPCRoute)
    assert manifest.spec.match is not None
    assert manifest.spec.match.path_prefix == "/"


def test_a_status_that_the_router_would_not_write_is_passed_over() -> None:
    decoded = run(service() | {"status": {"endpointCount": "many"}})
    assert isinstance(decoded.manifest, VPCService)
    assert decoded.manifest.status is None
    assert only(decoded).severity is Severity.WARNING
    good = run(service() | {"status": {"endpointCount": 3, "futureField": 1}})
    assert good.diagnostics == ()
    assert isinstance(good.manifest, VPCService)
    assert good.manifest.status is not None
    assert good.manifest.status.endpoint_count == 3


# --- what is wrong ---------------------------------------------------------------------------------------------


def test_a_misspelt_field_is_named_with_line_path_and_nearest_name() -> None:
    raw = route(match={"pathPrefx": "/api"})
    found = only(run(raw, lines={"spec.match": 8, "spec.match.pathPrefx": 9}))
    assert found.render() == (
        "f.yaml:9: error: vpcroute default/x: spec.match.pathPrefx: unknown field [UnknownField] "
        "(did you mean pathPrefix?)"
    )


def test_all_problems_of_an_object_are_reported_together() -> None:
    raw = obj(
        "VPCRoute",
        {
            "match": {"pathPrefx": "/a", "methods": ["get", 3]},
            "destinations": [{"weight": -1}, {"vpcServiceRef": {"nam": "s"}}],
            "loadBalancing": "Round",
            "timeoutSeconds": "30",
        },
    )
    paths = [item.path for item in run(raw).diagnostics]
    assert paths == [
        "spec.match.pathPrefx",
        "spec.match.methods[0]",
        "spec.match.methods[1]",
        "spec.destinations[0].vpcServiceRef",
        "spec.destinations[0].weight",
        "spec.destinations[1].vpcServiceRef.nam",
        "spec.loadBalancing",
        "spec.timeoutSeconds",
    ]


@pytest.mark.parametrize(
    ("raw", "path", "reason", "message", "hint"),
    [
        (service(port="80"), "spec.port", Reason.INVALID_VALUE, "found text '80', expected an integer from 1 to 65535",
         "remove the quotes"),
        (service(port=0), "spec.port", Reason.INVALID_VALUE,
         "found integer 0, expected an integer from 1 to 65535", ""),
        (service(port=True), "spec.port", Reason.INVALID_VALUE,
         "found boolean true, expected an integer from 1 to 65535", ""),
        (service(port=10**5000), "spec.port", Reason.INVALID_VALUE,
         "found a huge integer, expected an integer from 1 to 65535", ""),
        (service(protocol="http"), "spec.protocol", Reason.INVALID_VALUE,
         "found 'http', expected one of HTTP, HTTPS, H2C, GRPC, TCP", "did you mean HTTP?"),
        (service(connectTimeout="10"), "spec.connectTimeout", Reason.INVALID_VALUE,
         "found '10', expected a duration such as 10s, 1m30s or 250ms", "write 10s"),
        (service(tls={"mode": "Simple", "minVersion": 1.2}), "spec.tls.minVersion", Reason.INVALID_VALUE,
         "found number 1.2, expected one of 1.2, 1.3", "put the value in quotes"),
        (service(vpcAttachmentRef={"name": "Prod VPC"}), "spec.vpcAttachmentRef.name", Reason.INVALID_VALUE,
         "found 'Prod VPC', expected a DNS-1123 name: lower-case letters, digits, - and .", ""),
        (service(endpoints={"address": "10.0.0.1"}), "spec.endpoints", Reason.INVALID_VALUE,
         "found an object, expected a list of objects",
         "write a list of {address, port, weight, locationRef, priority}"),
        (route(match={"headers": {"x": 1}}), "spec.match.headers.x", Reason.INVALID_VALUE,
         "found integer 1, expected a header value: no control characters, no blank at either end",
         "put the value in quotes"),
        (route(match={"headers": {"x y": "1"}}), "spec.match.headers['x y']", Reason.INVALID_VALUE,
         "found 'x y', expected a header name (RFC 9110 token)", ""),
        (route(match={"methods": "GET"}), "spec.match.methods", Reason.INVALID_VALUE,
         "found text 'GET', expected a list", "put `- ` in front of each item, or the value in [ ]"),
        (obj("ServiceBinding", {"serviceRef": {"name": "a"}, "vpcServiceRef": {"name": "b"}, "autoSync": "true"}),
         "spec.autoSync", Reason.INVALID_VALUE, "found text 'true', expected true or false", "remove the quotes"),
        (obj("VPCService", None), "spec", Reason.MISSING_FIELD, "the field is missing", ""),
        (obj("VPCService", []), "spec", Reason.INVALID_VALUE,
         "found a list, expected an object with fields such as vpcAttachmentRef, vpcAttachmentSelector, protocol", ""),
        (service() | {"spce": {}}, "spce", Reason.UNKNOWN_FIELD, "unknown field", "did you mean spec?"),
    ],
)  # fmt: skip
def test_a_wrong_value_says_what_was_found_and_what_was_expected(
    raw: dict[str, object], path: str, reason: Reason, message: str, hint: str
) -> None:
    decoded = run(raw)
    assert decoded.manifest is None
    found = only(decoded)
    assert (found.path, found.reason, found.message, found.hint) == (path, reason, message, hint)
    assert found.severity is Severity.ERROR
    assert found.object.endswith(" default/x")


@pytest.mark.parametrize(
    ("raw", "path", "message", "hint"),
    [
        (route(timeouts={"request": 5}), "spec.timeouts.request",
         "found integer 5, expected a duration such as 10s, 1m30s or 250ms", "write 5s"),
        (route(timeouts={"request": True}), "spec.timeouts.request",
         "found boolean true, expected a duration such as 10s, 1m30s or 250ms", ""),
        (service(protocol="HTTP2"), "spec.protocol", "found 'HTTP2', expected one of HTTP, HTTPS, H2C, GRPC, TCP",
         "did you mean H2C?"),
        (service(protocol="TCPP"), "spec.protocol", "found 'TCPP', expected one of HTTP, HTTPS, H2C, GRPC, TCP",
         "did you mean TCP?"),
        (service(tls={"mode": "Simple", "minVersion": "TLSv1_3"}), "spec.tls.minVersion",
         "found 'TLSv1_3', expected one of 1.2, 1.3", "did you mean 1.3?"),
        (route(match={"methods": ["get"]}), "spec.match.methods[0]",
         "found 'get', expected an upper-case method such as GET", "write GET"),
        (route(loadBalancing="ROUND_ROBIN"), "spec.loadBalancing",
         "found 'ROUND_ROBIN', expected a balancer name such as round-robin, least-connections or consistent-hash",
         "did you mean round-robin?"),
        (route(loadBalancing="LEAST_REQUEST"), "spec.loadBalancing",
         "found 'LEAST_REQUEST', expected a balancer name such as round-robin, least-connections or consistent-hash",
         "did you mean least-connections?"),
        (route(destinations=[{"vpcServiceRef": "shop"}]), "spec.destinations[0].vpcServiceRef",
         "found text 'shop', expected an object with fields such as name, namespace",
         "write vpcServiceRef: {name: shop}"),
        (route(destinations=[{"vpcServiceRef": "prod/shop"}]), "spec.destinations[0].vpcServiceRef",
         "found text 'prod/shop', expected an object with fields such as name, namespace",
         "write vpcServiceRef: {name: shop, namespace: prod}"),
        (route(destinations=["shop"]), "spec.destinations[0]",
         "found text 'shop', expected an object with fields such as vpcServiceRef, weight, port",
         "write {vpcServiceRef: {name: shop}}"),
        (route(parentRefs=["edge"]), "spec.parentRefs[0]",
         "found text 'edge', expected an object with fields such as kind, name, namespace", "write {name: edge}"),
        (route(match={"headerMatches": ["x-tenant"]}), "spec.match.headerMatches[0]",
         "found text 'x-tenant', expected an object with fields such as name, type, value", ""),
        (route(filters=[{"type": "UrlRewrit"}]), "spec.filters[0].type",
         "found 'UrlRewrit', expected one of RequestHeaderModifier, ResponseHeaderModifier, RequestRedirect, "
         "URLRewrite, RequestMirror, RateLimit, FaultInjection, Plugin", "did you mean URLRewrite?"),
        (route(filters=[{}]), "spec.filters[0].type", "the field is missing",
         "one of RequestHeaderModifier, ResponseHeaderModifier, RequestRedirect, URLRewrite, RequestMirror, "
         "RateLimit, FaultInjection, Plugin"),
        (route(circuitBraker={}), "spec.circuitBraker", "unknown field",
         "did you mean circuitBreaker?"),
        (route(backendRefs=[]), "spec.backendRefs", "unknown field", "did you mean destinations?"),
        (service(outlierDetection={}), "spec.outlierDetection", "unknown field", "did you mean healthCheck.passive?"),
        (service(connect_timeout="1s"), "spec.connect_timeout", "unknown field", "did you mean connectTimeout?"),
    ],
)  # fmt: skip
def test_a_hint_says_how_it_is_written_here_and_recommends_nothing_that_is_refused(
    raw: dict[str, object], path: str, message: str, hint: str
) -> None:
    found = only(run(raw))
    assert (found.path, found.message, found.hint) == (path, message, hint)


@pytest.mark.parametrize("text", ["a\r\nx: y", "a\n", "a\x00", "\x1b[31m", "a\x7f"])
def test_no_control_character_gets_into_a_header_even_at_the_end(text: str) -> None:
    found = only(run(route(match={"headers": {"x": text}})))
    assert found.path == "spec.match.headers.x"
    assert "control character" in found.message
    assert text not in found.message


@pytest.mark.parametrize("text", [" a", "a ", "\ta"])
def test_a_header_value_that_could_never_arrive_or_be_sent_is_refused(text: str) -> None:
    assert only(run(route(match={"headers": {"x": text}}))).path == "spec.match.headers.x"
    assert run(route(match={"headerMatches": [{"name": "x", "type": "Prefix", "value": "Bearer "}]})).diagnostics == ()


def test_a_lone_surrogate_is_refused_and_its_message_can_be_printed() -> None:
    found = only(run(service(labels={"a": "\ud800"})))
    assert found.reason is Reason.INVALID_VALUE
    found.render().encode()


def test_a_missing_field_is_not_reported_beside_its_misspelling() -> None:
    raw = service()
    spec = raw["spec"]
    assert isinstance(spec, dict)
    spec["prot"] = spec.pop("port")
    assert only(run(raw)).path == "spec.prot"


def test_more_problems_than_the_limit_are_cut_with_a_note() -> None:
    decoded = run(route(destinations=[{"weight": -1}] * 64))
    assert len(decoded.diagnostics) == MAX_PROBLEMS + 1
    assert decoded.diagnostics[-1].message == f"more than {MAX_PROBLEMS} problems, others left out"


@pytest.mark.parametrize("where", ["metadata", "spec"])
def test_hints_are_looked_for_a_bounded_number_of_times(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes 0.1 ms: a file full of unknown fields, which is within its limits, would hold up all others."""
    asked: list[str] = []

    def likely(name: str, _known: object) -> str:
        asked.append(name)
        return ""

    monkeypatch.setattr("datum_router.manifests._walk.likely_field", likely)
    manifest = copy.deepcopy(EXAMPLES[1])
    fields = manifest[where]
    assert isinstance(fields, dict)
    fields.update({f"unknown{number}": number for number in range(1000)})
    decode(manifest, Origin(source="test"), TABLE)
    assert MAX_PROBLEMS <= len(asked) <= MAX_GUESSES


def test_nothing_is_looked_for_in_place_of_what_an_api_server_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every object of an API has it, and those with a backslash or an alias are walked."""

    def likely(name: str, _known: object) -> str:
        raise AssertionError(name)

    monkeypatch.setattr("datum_router.manifests._walk.likely_field", likely)
    raw = route(match={"pathRegex": r"/\d+"})
    raw["metadata"] = {"name": "x", **dict.fromkeys(KNOWN_METADATA, "x")}
    assert run(raw).diagnostics == ()


@pytest.mark.parametrize("name", ["x" * 300, f"{'n' * 100}/x"])
def test_a_text_that_is_too_long_for_a_reference_is_not_written_out(name: str) -> None:
    found = only(run(service(vpcAttachmentRef=name)))
    assert found.path == "spec.vpcAttachmentRef"
    assert found.hint == ""


def test_long_values_are_cut_in_messages() -> None:
    found = only(run(service(protocol="x" * 10_000)))
    assert len(found.message) < 300


# --- which object ----------------------------------------------------------------------------------------------


def test_an_object_without_namespace_is_in_default_and_its_key_says_so() -> None:
    decoded = run(service())
    assert decoded.key == ObjectKey(kind="VPCService", namespace="default", name="x")


@pytest.mark.parametrize(
    ("change", "path", "reason"),
    [
        ({"apiVersion": None}, "apiVersion", Reason.MISSING_FIELD),
        ({"kind": 3}, "kind", Reason.INVALID_VALUE),
        ({"kind": "a\nb"}, "kind", Reason.INVALID_VALUE),
        ({"metadata": None}, "metadata", Reason.MISSING_FIELD),
        ({"metadata": "x"}, "metadata", Reason.INVALID_VALUE),
        ({"metadata": {}}, "metadata.name", Reason.MISSING_FIELD),
        ({"metadata": {"name": 5}}, "metadata.name", Reason.INVALID_VALUE),
        ({"metadata": {"name": "My_API"}}, "metadata.name", Reason.INVALID_VALUE),
        ({"metadata": {"name": "a\n"}}, "metadata.name", Reason.INVALID_VALUE),
        ({"metadata": {"name": "a" * 254}}, "metadata.name", Reason.INVALID_VALUE),
        ({"metadata": {"name": "a", "namespace": "b.c"}}, "metadata.namespace", Reason.INVALID_VALUE),
        ({"metadata": {"name": "a", "namespace": 1}}, "metadata.namespace", Reason.INVALID_VALUE),
    ],
)
def test_an_object_that_cannot_be_identified_has_no_key_and_is_named_by_its_file(
    change: dict[str, object], path: str, reason: Reason
) -> None:
    decoded = run(service() | change)
    assert decoded.key is None
    assert decoded.manifest is None
    found = only(decoded)
    assert (found.object, found.path, found.reason) == ("f.yaml", path, reason)


def test_what_is_no_object_at_all_is_reported() -> None:
    found = only(run(["a"]))  # type: ignore[arg-type]  # a source that broke its promise
    assert found.message == "found a list, expected an object"


@pytest.mark.parametrize(
    ("api_version", "kind", "hint"),
    [
        (API, "VPCRout", "did you mean VPCRoute?"),
        (API, "vpcroute", "did you mean VPCRoute?"),
        (
            API,
            "Gateway",
            "the kinds of router.datum.net are VPCService, VPCRoute, ServiceBinding, VPCIngress, VPCEgress",
        ),
        ("router.datum.net/v1", "VPCRoute", "use apiVersion router.datum.net/v1alpha1"),
    ],
)
def test_an_unknown_kind_of_our_group_is_an_error_with_the_nearest_name(api_version: str, kind: str, hint: str) -> None:
    decoded = run({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}})
    found = only(decoded)
    assert (found.reason, found.severity, found.hint) == (Reason.UNKNOWN_KIND, Severity.ERROR, hint)
    assert not decoded.is_unknown_kind


def test_a_kind_of_another_group_is_passed_over() -> None:
    decoded = run({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}})
    assert decoded == Decoded(key=ObjectKey(kind="Deployment", namespace="default", name="x"), is_unknown_kind=True)
    assert run({"apiVersion": "apps/v1", "kind": "Deployment"}) == Decoded(is_unknown_kind=True)


def test_a_misspelt_group_is_passed_over_with_a_warning() -> None:
    decoded = run(service() | {"apiVersion": "router.datum.com/v1alpha1"})
    assert decoded.is_unknown_kind
    found = only(decoded)
    assert (found.severity, found.hint) == (Severity.WARNING, "did you mean apiVersion router.datum.net/v1alpha1?")


def test_a_misspelt_metadata_field_is_a_warning_and_what_servers_add_is_not() -> None:
    decoded = run(service() | {"metadata": {"name": "x", "lables": {}, "managedFields": [], "selfLink": ""}})
    assert decoded.manifest is not None
    found = only(decoded)
    assert (found.severity, found.path, found.hint) == (Severity.WARNING, "metadata.lables", "did you mean labels?")


# --- kinds of plugins ------------------------------------------------------------------------------------------


class ThingSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    target_port: int | str | None = None


class Thing(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: ThingSpec = ThingSpec()


def thing_table(**more: object) -> KindTable:
    row = ResourceKind(group="x.example", version="v1", kind="Thing", plural="things", struct=Thing, **more)  # type: ignore[arg-type]  # any field of the row
    return KindTable([*OWN_KINDS, row])


def thing(spec: object) -> dict[str, object]:
    return {"apiVersion": "x.example/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": spec}


@pytest.mark.parametrize("port", [80, "http", None])
def test_a_plugin_kind_reads_tolerantly_and_may_hold_unions(port: object) -> None:
    decoded = run(thing({"targetPort": port, "somethingNew": 1}), thing_table())
    assert decoded.diagnostics == ()
    assert isinstance(decoded.manifest, Thing)
    assert decoded.manifest.spec.target_port == port


def test_a_value_that_no_member_of_a_union_takes_is_reported() -> None:
    found = only(run(thing({"targetPort": 1.5}), thing_table()))
    assert (found.path, found.message) == ("spec.targetPort", "found number 1.5, expected int or str")


def test_a_cluster_scoped_kind_has_no_namespace() -> None:
    decoded = run(thing({}), thing_table(namespaced=False))
    assert decoded.key == ObjectKey(kind="Thing", namespace="", name="t")
    assert isinstance(decoded.manifest, Thing)
    assert decoded.manifest.metadata.namespace == ""


def test_a_validator_that_fails_is_reported_and_does_not_stop_decoding() -> None:
    def broken(_manifest: Thing) -> list[Problem]:
        raise RuntimeError("boom")

    decoded = run(thing({}), thing_table(validate=broken))
    assert decoded.manifest is None
    found = only(decoded)
    assert found.reason is Reason.PLUGIN_FAILED
    assert "RuntimeError" in found.message


def test_deep_nesting_in_a_field_that_nobody_reads_does_no_harm() -> None:
    deep: object = 0
    for _ in range(100_000):
        deep = [deep]
    decoded = run(thing({"unread": deep}), thing_table())
    assert isinstance(decoded.manifest, Thing)
    assert run(service(port=deep)).manifest is None
