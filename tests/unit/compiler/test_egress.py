"""From VPCEgress to rules: sources, destinations, TLS, what is reported, what is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from datum_router.compiler.diff import apply_delta, describe_changes, digest_of, make_delta
from datum_router.model.egress import EgressListener, EgressMode, EgressProtocol, EgressTarget
from datum_router.model.listener import Listener
from datum_router.model.service import UNRESOLVED, UpstreamTls

Bench = Callable[..., Any]
CERT = "-----BEGIN CERTIFICATE-----\nQ0VSVA==\n-----END CERTIFICATE-----\n"
KEY = "-----BEGIN PRIVATE KEY-----\nS0VZ\n-----END PRIVATE KEY-----\n"

EXAMPLE = {
    "sourceVpcAttachment": "prod-vpc",
    "match": {"destinationCidrs": ["0.0.0.0/0"], "destinationPorts": [443], "protocols": ["HTTPS"]},
    "destinations": [{"endpoint": "API.example.com", "port": 443, "tls": {"enabled": True, "sni": "api.example.com"}}],
    "policy": "Allow",
    "priority": 100,
    "timeouts": {"connect": "2s", "streamIdle": "5m"},
    "rateLimit": {"requestsPerSecond": 10},
    "log": True,
}


@pytest.fixture
def made(bench: Bench, kit: Any) -> Callable[..., Any]:
    def make(spec: dict[str, object], *others: dict, **options: object) -> Any:
        return bench(**options).compile(kit.obj("VPCEgress", "out", spec), *others)

    return make


def test_all_fields_reach_the_rule(made: Any) -> None:
    (rule,) = made(EXAMPLE).data.egress.rules
    assert (rule.name, rule.namespace, rule.attachments) == ("default/out", "default", ("default/prod-vpc",))
    assert (rule.networks, rule.ports, rule.protocols) == (("0.0.0.0/0",), (443,), (EgressProtocol.HTTPS,))
    assert rule.targets == (
        EgressTarget(host="api.example.com", port=443, tls=UpstreamTls(server_name="api.example.com")),
    )
    assert (rule.rate, rule.burst, rule.is_logged, rule.idle_s, rule.timeouts.connect_s) == (10.0, 10, True, 300.0, 2.0)


def test_without_a_vpcegress_there_is_no_policy_and_with_the_last_it_goes(bench: Bench, kit: Any) -> None:
    table = bench()
    egress = kit.obj("VPCEgress", "out", {})
    assert table.compile().data.egress is None
    with_one = table.compile(egress).data
    assert with_one.egress is not None
    table.delete(egress)
    assert table.compile().data.egress is None


def test_an_unchanged_policy_is_the_same_object(bench: Bench, kit: Any) -> None:
    table = bench()
    first = table.compile(kit.obj("VPCEgress", "out", EXAMPLE)).data
    second = table.compile(kit.service()).data
    assert second.egress is first.egress
    assert second.version == first.version + 1
    third = table.compile(kit.obj("VPCEgress", "out", {**EXAMPLE, "priority": 7})).data
    assert third.egress is not first.egress
    assert third.digest != second.digest == digest_of(second)


def test_the_policy_travels_in_deltas(bench: Bench, kit: Any) -> None:
    table = bench()
    nothing = table.compile(kit.service()).data
    some = table.compile(kit.obj("VPCEgress", "out", EXAMPLE)).data
    assert apply_delta(nothing, make_delta(nothing, some)) == some
    table.delete(kit.obj("VPCEgress", "out", EXAMPLE))
    gone = table.compile().data
    assert apply_delta(some, make_delta(some, gone)).egress is None
    more = table.compile(kit.service("other")).data
    assert not make_delta(gone, more).has_egress
    assert [(one.kind, one.name, one.action) for one in describe_changes(nothing, some)] == [
        ("egress", "default/out", "added")
    ]


def test_an_attachment_that_is_not_there_is_a_warning_and_known_by_its_name(made: Any) -> None:
    result = made({"sourceVpcAttachment": "gone"})
    (found,) = result.diagnostics
    assert (found.reason, found.is_reference, found.path) == ("AttachmentNotFound", True, "spec.sourceVpcAttachment")
    assert result.data.egress.rules[0].attachments == ("default/gone",)


def test_a_selector_that_selects_nobody_is_about_nobody(made: Any) -> None:
    result = made({"sourceSelector": {"matchLabels": {"a": "b"}}})
    assert [one.path for one in result.diagnostics] == ["spec.sourceSelector"]
    assert result.data.egress.rules[0].attachments == ()


@pytest.mark.parametrize("name", ["xn--a.example", "xn--ls8h9999999.example"])
def test_an_allow_rule_with_a_name_that_nobody_can_ask_for_is_not_in_force(made: Any, name: str) -> None:
    spec: dict[str, object] = {"match": {"hostnames": ["a.example", name]}}
    result = made(spec)
    (found,) = result.diagnostics
    assert (found.path, found.reason) == ("spec.match.hostnames[1]", "InvalidValue")
    assert result.data.egress.rules == ()
    assert made({**spec, "policy": "Deny"}).data.egress.rules[0].hostnames == ("a.example",)


def test_insecure_is_said_aloud_and_a_missing_bundle_trusts_nobody(made: Any) -> None:
    insecure = {"destinations": [{"endpoint": "a.example", "port": 443, "tls": {"enabled": True, "insecure": True}}]}
    result = made(insecure)
    assert [(one.path, one.severity) for one in result.diagnostics] == [
        ("spec.destinations[0].tls.insecure", "warning")
    ]
    assert result.data.egress.rules[0].targets[0].tls.is_verified is False
    missing = {"destinations": [{"endpoint": "a.example", "port": 443, "tls": {"enabled": True, "caSecretName": "ca"}}]}
    result = made(missing)
    assert [one.reason for one in result.diagnostics] == ["InvalidCertificateRef"]
    assert result.data.egress.rules[0].targets[0].tls.ca_pem == UNRESOLVED
    assert made(missing, are_credentials_known=False).diagnostics == ()


def test_a_bundle_is_read_of_the_secret(made: Any, kit: Any) -> None:
    spec = {"destinations": [{"endpoint": "a.example", "port": 443, "tls": {"enabled": True, "caSecretName": "ca"}}]}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "ca", "namespace": "default"},
        "stringData": {"ca.crt": "PEM"},
    }
    result = made(spec, secret)
    assert result.diagnostics == ()
    assert result.data.egress.rules[0].targets[0].tls.ca_pem == "PEM"


@pytest.mark.parametrize(
    ("data", "pair"),
    [
        ({"tls.crt": CERT, "tls.key": KEY}, (CERT, KEY)),
        ({"tls.crt": CERT}, (UNRESOLVED, UNRESOLVED)),
        ({"tls.key": KEY}, (UNRESOLVED, UNRESOLVED)),
        (None, (UNRESOLVED, UNRESOLVED)),
    ],
)
def test_our_certificate_is_read_of_the_secret_and_nothing_is_sent_without(
    made: Any, kit: Any, data: dict[str, str] | None, pair: tuple[str, str]
) -> None:
    tls = {"enabled": True, "clientCertificateSecretName": "ours"}
    spec = {"destinations": [{"endpoint": "a.example", "port": 443, "tls": tls}]}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ours", "namespace": "default"}}
    result = made(spec, *([] if data is None else [{**secret, "stringData": data}]))
    found = result.data.egress.rules[0].targets[0].tls
    assert (found.cert_pem, found.key_pem) == pair
    said = [(one.path, one.reason, one.is_reference) for one in result.diagnostics]
    path = "spec.destinations[0].tls.clientCertificateSecretName"
    assert said == ([] if pair[0] == CERT else [(path, "InvalidCertificateRef", True)])
    assert made(spec, are_credentials_known=False).diagnostics == ()


def test_a_gateway_without_an_egress_listener_says_so(made: Any) -> None:
    assert [one.reason for one in made({}, egress_listeners=()).diagnostics] == ["NoEgressListener"]
    listener = Listener(name="egress", port=3128, egress=EgressListener(mode=EgressMode.PROXY))
    result = made({}, egress_listeners=(listener,))
    assert result.diagnostics == ()
    assert result.data.listeners[-1] == listener
    assert made({}).diagnostics == ()


def test_conditions_that_cannot_hold_together_are_a_warning(made: Any) -> None:
    result = made({"match": {"protocols": ["HTTPS"], "methods": ["GET"]}})
    assert [(one.path, one.severity) for one in result.diagnostics] == [("spec.match.protocols", "warning")]
    for spec in (
        {"match": {"protocols": ["HTTPS", "HTTP"], "methods": ["GET"]}},
        {"match": {"methods": ["GET"]}},
        {"match": {"protocols": ["HTTPS"], "methods": ["GET"]}, "policy": "Deny"},
    ):
        assert made(spec).diagnostics == ()
