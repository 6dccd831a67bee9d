from typing import Any

import pytest

from datum_router.compiler import refs
from datum_router.compiler.diagnostics import Severity
from datum_router.model.listener import Listener
from datum_router.model.policy import ProbeType
from datum_router.model.route import PathKind
from datum_router.model.service import UpstreamProtocol
from datum_router.reasons import Reason


def test_a_service_and_its_route_become_a_snapshot(bench: Any, kit: Any) -> None:
    result = bench().compile(kit.service(), kit.route(match={"pathPrefix": "/api/v1/", "methods": ["GET"]}))
    assert not result.diagnostics
    (rule,) = result.data.rules
    assert (rule.match.path.kind, rule.match.path.value, rule.match.methods) == (PathKind.PREFIX, "/api/v1", ("GET",))
    service = result.data.services["default/my-api"]
    assert [item.key for item in service.endpoints] == ["10.0.0.1:80"]
    assert [item.name for item in result.data.listeners] == ["plain"]
    assert result.data.version == 1
    assert result.data.digest


def test_equal_content_keeps_version_and_object(bench: Any, kit: Any) -> None:
    one = bench()
    first = one.compile(kit.service(), kit.route())
    assert one.compile(kit.route(), kit.service()).data is first.data


def test_unchanged_parts_are_shared_by_reference(bench: Any, kit: Any) -> None:
    one = bench()
    first = one.compile(kit.service("a"), kit.service("b"), kit.route("a", "a"), kit.route("b", "b"))
    second = one.compile(kit.route("b", "b", match={"pathPrefix": "/b"}))
    assert second.data.version == 2
    assert second.data.services["default/a"] is first.data.services["default/a"]
    kept = {rule.id: rule for rule in first.data.rules}["default/a#0"]
    assert any(rule is kept for rule in second.data.rules)


def test_order_of_arrival_never_matters(bench: Any, kit: Any) -> None:
    objects = [
        kit.service(),
        kit.route("old", created="2026-01-01T00:00:00Z"),
        kit.route("new", created="2026-02-01T00:00:00Z"),
        kit.route("long", match={"pathPrefix": "/a/b"}),
        kit.route("exact", match={"exactPath": "/a"}),
        kit.route("host", hostnames=["a.test"]),
    ]
    forward = bench().compile(*objects)
    backward = bench().compile(*reversed(objects))
    assert [rule.id for rule in forward.data.rules] == [rule.id for rule in backward.data.rules]
    assert forward.data.digest == backward.data.digest


def test_a_missing_service_is_a_reference_warning_with_the_nearest_name(bench: Any, kit: Any) -> None:
    result = bench().compile(kit.service("my-api"), kit.route("api", "my-apy"))
    (found,) = result.diagnostics
    assert found.reason is Reason.VPC_SERVICE_NOT_FOUND
    assert found.severity is Severity.WARNING
    assert found.is_reference
    assert found.path == "spec.destinations[0].vpcServiceRef.name"
    assert found.hint == "did you mean my-api?"
    assert found.file == "api-VPCRoute.yaml"
    assert result.data.rules[0].destinations[0].problem == "VPCServiceNotFound"


def test_references_to_nowhere_are_compared_with_a_bounded_number_of_names(
    bench: Any, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refs, "MAX_COMPARED_NAMES", 6)
    services = [kit.service(name) for name in ("api-1", "api-2", "api-3")]
    names = ("api-a", "api-a", "api-b", "api-c")
    routes = [kit.route(f"r{n}", name, hostnames=[f"h{n}.test"]) for n, name in enumerate(names)]
    result = bench().compile(*services, *routes)
    assert [bool(found.hint) for found in result.diagnostics] == [True, True, True, False]


def test_a_service_that_is_in_another_namespace_is_hinted_at(bench: Any, kit: Any) -> None:
    (found,) = bench().compile(kit.service("my-api", namespace="prod"), kit.route("api", "my-api")).diagnostics
    assert found.hint == (
        "there is one in namespace prod: name it, and give consent there by spec.exportTo or a ReferenceGrant"
    )


def test_hints_follow_the_services_that_are_there(bench: Any, kit: Any) -> None:
    one = bench()
    assert one.compile(kit.route("api", "my-apy")).diagnostics[0].hint == ""
    assert one.compile(kit.service("my-api")).diagnostics[0].hint == "did you mean my-api?"
    one.delete(kit.service("my-api"))
    assert one.compile(kit.service("her-apy")).diagnostics[-1].hint == "did you mean her-apy?"
    assert one.compile(kit.service("her-apy", port=81)).diagnostics[-1].hint == "did you mean her-apy?"


def test_rules_that_match_the_same_requests_conflict_and_the_older_one_wins(bench: Any, kit: Any) -> None:
    older = kit.route("z", created="2026-01-01T00:00:00Z")
    newer = kit.route("a", created="2026-06-01T00:00:00Z")
    result = bench().compile(kit.service(), newer, older)
    (found,) = result.diagnostics
    assert found.reason is Reason.CONFLICTED
    assert found.object == "vpcroute default/a"
    assert result.data.rules[0].id == "default/z#0"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("round-robbin", "round-robin"),
        ("roundrobin", "round-robin"),
        ("least-request", "least-connections"),
        ("ring-hash", "consistent-hash-ring"),
    ],
)
def test_an_unknown_balancer_keeps_the_route_out_and_names_the_nearest(
    bench: Any, kit: Any, name: str, nearest: str
) -> None:
    result = bench().compile(kit.service(), kit.route(loadBalancing=name))
    (found,) = result.diagnostics
    assert found.reason is Reason.UNKNOWN_BALANCER
    assert found.hint == f"did you mean {nearest}?"
    assert not result.data.rules


def test_the_ring_algorithm_chooses_the_ring_balancer(bench: Any, kit: Any) -> None:
    config = {"algorithm": "Ring", "hashOn": "Header", "headerName": "X-User"}
    result = bench().compile(kit.service(), kit.route(loadBalancing="consistent-hash", loadBalancingConfig=config))
    balancing = result.data.rules[0].balancing
    assert (balancing.algorithm, balancing.hash_name) == ("consistent-hash-ring", "x-user")


def test_a_pattern_without_an_engine_is_a_diagnostic_and_other_matches_serve(bench: Any, kit: Any) -> None:
    matches = [{"pathRegex": "/a[0-9]+"}, {"pathPrefix": "/b"}]
    result = bench(regex=None).compile(kit.service(), kit.route(matches=matches))
    (found,) = result.diagnostics
    assert found.reason is Reason.REGEX_UNAVAILABLE
    assert found.path == "spec.matches[0].pathRegex"
    assert [rule.id for rule in result.data.rules] == ["default/api#1"]


def test_grpc_conditions_become_paths(bench: Any, kit: Any) -> None:
    def path_of(match: dict[str, str]) -> tuple[str, str]:
        path = bench().compile(kit.service(), kit.route(match=match)).data.rules[0].match.path
        return (path.kind, path.value)

    assert path_of({"grpcService": "a.B", "grpcMethod": "C"}) == ("exact", "/a.B/C")
    assert path_of({"grpcService": "a.B"}) == ("prefix", "/a.B")


@pytest.mark.parametrize(
    ("protocol", "health", "kind"),
    [("HTTP", {}, ProbeType.HTTP), ("gRPC", {}, ProbeType.GRPC), ("gRPC", {"type": "TCP"}, ProbeType.TCP)],
)
def test_the_probe_follows_the_protocol_unless_it_is_given(
    bench: Any, kit: Any, protocol: str, health: dict[str, str], kind: ProbeType
) -> None:
    result = bench().compile(kit.service(protocol=protocol, healthCheck=health))
    active = result.data.services["default/my-api"].active
    assert active is not None
    assert active.type is kind


def test_https_means_tls_with_verification(bench: Any, kit: Any) -> None:
    result = bench().compile(kit.service(protocol="HTTPS"))
    service = result.data.services["default/my-api"]
    assert service.protocol is UpstreamProtocol.HTTPS
    assert service.tls is not None
    assert service.tls.is_verified


def test_a_ca_that_is_not_there_trusts_nobody_instead_of_everybody(bench: Any, kit: Any) -> None:
    tls = {"caCertificateRefs": [{"name": "ca"}]}
    result = bench().compile(kit.service(protocol="HTTPS", tls=tls))
    service = result.data.services["default/my-api"]
    assert [item.reason for item in result.diagnostics] == [Reason.INVALID_CERTIFICATE_REF]
    assert service.tls is not None
    assert service.tls.ca_pem.strip()
    assert "BEGIN CERTIFICATE" not in service.tls.ca_pem


def test_a_ca_bundle_comes_from_a_config_map(bench: Any, kit: Any) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca"}, "data": {"ca.crt": "PEM"}}
    service = kit.service(protocol="HTTPS", tls={"caCertificateRefs": [{"name": "ca"}], "sni": "a.test"})
    tls = bench().compile(config, service).data.services["default/my-api"].tls
    assert tls is not None
    assert (tls.ca_pem, tls.server_name) == ("PEM", "a.test")


def test_a_port_override_that_names_the_services_own_port_overrides_nothing(bench: Any, kit: Any) -> None:
    def port(number: int) -> int | None:
        spec = {"destinations": [{"vpcServiceRef": {"name": "my-api"}, "port": number}]}
        result = bench().compile(kit.service(targetPort=9000), kit.obj("VPCRoute", "api", spec))
        found: int | None = result.data.rules[0].destinations[0].port
        return found

    assert port(80) is None
    assert port(81) == 81


def test_a_listen_setting_takes_the_place_of_ingress_listeners(bench: Any, kit: Any) -> None:
    ingress = kit.obj("VPCIngress", "edge", {"host": "a.test", "rules": [{"service": {"name": "my-api"}}]})
    listen = Listener(name="listen", host="127.0.0.1", port=1234)
    result = bench(listen=listen).compile(kit.service(), ingress)
    assert result.data.listeners == (listen,)
    assert result.data.rules[0].listeners == ()


def test_a_deleted_object_leaves_the_snapshot(bench: Any, kit: Any) -> None:
    one = bench()
    one.compile(kit.service(), kit.route())
    one.delete(kit.route())
    assert not one.compile().data.rules


def test_a_binding_to_nowhere_is_reported(bench: Any, kit: Any) -> None:
    spec = {"serviceRef": {"name": "s"}, "vpcServiceRef": {"name": "gone"}, "autoSync": True}
    result = bench().compile(kit.obj("ServiceBinding", "b", spec))
    assert [(item.object, item.reason) for item in result.diagnostics] == [
        ("servicebinding default/b", Reason.VPC_SERVICE_NOT_FOUND)
    ]
