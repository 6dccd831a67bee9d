"""When certificates end, as metrics (threat F5)."""

from __future__ import annotations

import datetime

import trustme

from datum_router.model.egress import EgressPolicy, EgressRule, EgressTarget
from datum_router.model.listener import Listener, TlsBinding
from datum_router.model.service import UNRESOLVED, Service, ServiceKey, UpstreamTls
from datum_router.model.snapshot import SnapshotData
from datum_router.observe import names
from datum_router_runtime.certificatemetrics import GATEWAY, CertificateEnds, read_end

CA = trustme.CA()
DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def certificate(days: int) -> tuple[str, float]:
    end = NOW + days * DAY
    issued = CA.issue_cert(f"in-{days}.test", not_after=end)
    return "# text before\n" + "".join(one.bytes().decode() for one in issued.cert_chain_pems), end.timestamp()


def test_the_end_is_told_of_each_ingress_and_the_first_of_all_identities() -> None:
    (soon, soon_at), (late, late_at), (later, _) = certificate(3), certificate(30), certificate(60)
    listeners = (
        Listener(name="https", tls=(TlsBinding(cert_pem=late, owner="a/b"), TlsBinding(cert_pem=soon, owner="a/b"))),
        Listener(name="other", tls=(TlsBinding(cert_pem=late), TlsBinding(cert_pem="nothing", owner="a/c"))),
        Listener(name="plain"),
    )
    services = {
        ServiceKey(f"default/{name}"): Service(key=ServiceKey(f"default/{name}"), tls=tls)
        for name, tls in (
            ("a", UpstreamTls(cert_pem=late)),
            ("b", UpstreamTls(cert_pem=soon)),
            ("c", UpstreamTls(cert_pem=UNRESOLVED)),
            ("d", UpstreamTls()),
            ("e", None),
        )
    }
    targets = [
        EgressTarget(host="a.test", port=443, tls=tls)
        for tls in (UpstreamTls(cert_pem=later), UpstreamTls(cert_pem=late), UpstreamTls(), None)
    ]
    denied = EgressTarget(host="b.test", port=443, tls=UpstreamTls(cert_pem=soon))
    rules = (
        EgressRule(name="a/out", namespace="a", targets=tuple(targets)),
        EgressRule(name="a/not", namespace="a", is_allow=False, targets=(denied,)),
    )
    ends = CertificateEnds()
    data = SnapshotData(listeners=listeners, services=services, egress=EgressPolicy(rules=rules))
    for _ in range(2):  # what is known is not read again, and is the same
        assert dict(ends.values(data)) == {
            (names.CERTIFICATE_END.name, ("a/b",)): soon_at,
            (names.CERTIFICATE_END.name, (GATEWAY,)): late_at,
            (names.IDENTITY_END.name, ("VPCService",)): soon_at,
            (names.IDENTITY_END.name, ("VPCEgress",)): late_at,
        }
    nothing = {(names.IDENTITY_END.name, (kind,)): 0 for kind in ("VPCService", "VPCEgress")}
    assert dict(ends.values(SnapshotData())) == dict(ends.values(None)) == nothing


def test_what_cannot_be_read_has_no_end() -> None:
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    for pem in ("", begin, f"{end}{begin}", f"{begin}\n!\n{end}", f"{begin}\nQUJD\n{end}\n"):
        assert read_end(pem) is None, pem
