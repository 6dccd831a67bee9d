"""Certificates that the gateway itself is given: what they are used for, and what they never replace."""

import base64
from typing import Any

import pytest

from datum_router.compiler.environment import NAMESPACE, OwnCredentials
from datum_router.model.listener import Listener
from datum_router.model.service import UNRESOLVED
from datum_router.reasons import Reason

PEM = "-----BEGIN {0}-----\n{1}\n-----END {0}-----\n"
PAIR = {"tls.crt": PEM.format("CERTIFICATE", "T1dO"), "tls.key": PEM.format("PRIVATE KEY", "T1dO")}
CAS = {"ca.crt": PEM.format("CERTIFICATE", "Q0FT")}
OTHER = {"tls.crt": PEM.format("CERTIFICATE", "T1RI"), "tls.key": PEM.format("PRIVATE KEY", "T1RI")}
ALL = OwnCredentials(has_server=True, has_client=True, has_authorities=True)


def secret(name: str, data: dict[str, str], namespace: str = NAMESPACE) -> dict[str, Any]:
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}, "data": encoded}


OWN = (secret("router-tls", PAIR), secret("router-client", PAIR), secret("router-client-ca", CAS))


def upstream(kit: Any, **tls: Any) -> dict[str, Any]:
    return kit.service("up", protocol="HTTPS", **({"tls": tls} if tls else {}))


def test_its_certificate_opens_https_beside_the_fallback(bench: Any, kit: Any) -> None:
    one = bench(own=ALL)
    assert [item.name for item in one.compile(kit.service()).data.listeners] == ["plain"]  # nothing read yet
    listeners = one.compile(*OWN).data.listeners
    assert [(item.name, item.port, item.hostnames) for item in listeners] == [
        ("plain", 8080, ()),
        ("https-8443", 8443, ()),
    ]
    assert listeners[1].tls[0].cert_pem == PAIR["tls.crt"]
    assert bench().compile(*OWN).data.listeners == listeners[:1]  # it is for whom it was given to


def test_with_a_listen_setting_it_is_served_on_the_same_address(bench: Any, kit: Any) -> None:
    for port, expected in ((9000, 8443), (0, 0)):
        listen = Listener(name="plain", host="127.0.0.1", port=port)
        (_, https) = bench(own=ALL, listen=listen).compile(kit.service(), *OWN).data.listeners
        assert (https.host, https.port) == ("127.0.0.1", expected)


def test_it_is_shown_for_names_that_no_ingress_has_a_certificate_for(bench: Any, kit: Any) -> None:
    spec = {"host": "a.test", "tls": {"secretName": "a"}, "rules": [{"service": {"name": "my-api"}}]}
    ingress = kit.obj("VPCIngress", "a", spec)
    data = bench(own=ALL).compile(kit.service(), ingress, secret("a", OTHER, "default"), *OWN).data
    plain, https = data.listeners
    assert [(one.hostnames, one.cert_pem) for one in https.tls] == [
        ((), PAIR["tls.crt"]),
        (("a.test",), OTHER["tls.crt"]),
    ]
    assert https.hostnames == ("a.test",)
    assert plain.tls == ()
    # On another port, the gateway's own listener stands beside it.
    ingress["spec"]["listeners"] = [{"name": "s", "port": 9443, "protocol": "HTTPS"}]
    listeners = bench(own=ALL).compile(kit.service(), ingress, secret("a", OTHER, "default"), *OWN).data.listeners
    assert [item.port for item in listeners] == [9443, 8443]


def test_its_identity_and_cas_are_for_services_that_name_none(bench: Any, kit: Any) -> None:
    def compiled(**tls: Any) -> Any:
        (service,) = (
            bench(own=ALL).compile(upstream(kit, **tls), secret("me", OTHER, "default"), *OWN).data.services.values()
        )
        return service.tls

    assert compiled().ca_pem == CAS["ca.crt"].strip()
    assert compiled().cert_pem == ""  # it is shown where mode Mutual asks for it
    assert compiled(mode="Mutual").cert_pem == PAIR["tls.crt"]
    assert compiled(mode="Mutual", clientCertificateRef={"name": "me"}).cert_pem == OTHER["tls.crt"]
    assert compiled(insecureSkipVerify=True).ca_pem == ""


def test_what_could_not_be_read_leads_to_no_connection(bench: Any, kit: Any) -> None:
    result = bench(own=ALL).compile(upstream(kit, mode="Mutual"))
    (service,) = result.data.services.values()
    assert (service.tls.ca_pem, service.tls.cert_pem) == (UNRESOLVED, UNRESOLVED)


@pytest.mark.parametrize(
    ("tls", "is_verified"),
    [({}, False), ({"caCertificateRefs": [{"name": "c"}]}, True), ({"subjectAltNames": ["a.test"]}, True)],
)
def test_verifying_can_be_switched_off_where_nothing_is_said_and_that_is_told(
    bench: Any, kit: Any, tls: dict[str, Any], is_verified: bool
) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": CAS}
    result = bench(own=OwnCredentials(is_verifying=False)).compile(upstream(kit, **tls), config)
    (service,) = result.data.services.values()
    assert service.tls.is_verified is is_verified
    said = [item for item in result.diagnostics if item.reason is Reason.UPSTREAM_TLS]
    assert bool(said) is not is_verified
    assert all("ROUTER_CLIENT_VERIFY_SERVER is false" in item.message for item in said)
