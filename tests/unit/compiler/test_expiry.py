"""Certificates and time: what is read of them, what is said of them and when."""

from __future__ import annotations

import datetime

import pytest

from datum_router.compiler.expiry import Expiry, ExpiryBook, expiry_diagnostics, owner_of
from datum_router.manifests.meta import ObjectKey
from datum_router.model.egress import EgressPolicy, EgressRule, EgressTarget
from datum_router.model.listener import Listener, TlsBinding
from datum_router.model.service import UNRESOLVED, UpstreamTls
from datum_router.model.snapshot import SnapshotData
from datum_router.model.validity import EXPIRY_WARNING_S, Validity, read_bundle_validity, read_validity
from datum_router.reasons import Reason

trustme = pytest.importorskip("trustme", reason="the core alone makes no certificates; the whole run does")
x509 = pytest.importorskip("cryptography.x509", reason="as above")
CA = trustme.CA()
DAY_S = 86_400.0


def pem(until: datetime.datetime, since: datetime.datetime | None = None) -> str:
    return CA.issue_cert("a.test", not_after=until, not_before=since).cert_chain_pems[0].bytes().decode()


def ends(text: str) -> float:
    validity = read_validity(text)
    assert validity is not None
    return validity.not_after


@pytest.mark.parametrize("year", [2049, 2051], ids=["UTCTime", "GeneralizedTime"])
def test_both_forms_of_time_are_read_as_another_library_reads_them(year: int) -> None:
    text = pem(datetime.datetime(year, 3, 4, 5, 6, 7, tzinfo=datetime.UTC))
    other = x509.load_pem_x509_certificate(text.encode())
    found = read_validity("before\n" + text + CA.cert_pem.bytes().decode())
    assert found == Validity(
        not_before=other.not_valid_before_utc.timestamp(), not_after=other.not_valid_after_utc.timestamp()
    )


def test_what_is_no_certificate_has_no_validity_and_no_cut_of_one_breaks_the_reader() -> None:
    text = pem(datetime.datetime(2040, 1, 1, tzinfo=datetime.UTC))
    body = "".join(text.splitlines()[1:-1])
    for size in range(0, len(body), 4):
        cut = f"-----BEGIN CERTIFICATE-----\n{body[:size]}\n-----END CERTIFICATE-----\n"
        found = read_validity(cut)
        assert found is None or found == read_validity(text)
    for other in ("", "no PEM", "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----", text[:200]):
        assert read_validity(other) is None


def test_one_certificate_of_each_ingress_is_looked_at_the_first_to_run_out_first() -> None:
    soon, late = (pem(datetime.datetime(year, 1, 1, tzinfo=datetime.UTC)) for year in (2030, 2040))
    bindings = [
        TlsBinding(cert_pem=late, owner="default/late"),
        TlsBinding(cert_pem=soon, owner="default/soon"),
        TlsBinding(cert_pem="broken", owner="default/broken"),
        TlsBinding(cert_pem=soon),
    ]
    listeners = (Listener(name="a", tls=tuple(bindings)), Listener(name="b", tls=tuple(bindings[:1])))
    data = SnapshotData(listeners=listeners)
    book = ExpiryBook()
    assert [one.owner for one in book.look(data)] == ["default/soon", "default/late"]
    assert book.look(data) == book.look(data)
    assert book.look(SnapshotData()) == book.look(None) == []


def test_what_a_destination_is_shown_and_verified_by_is_looked_at_by_its_place() -> None:
    soon, late = (pem(datetime.datetime(year, 1, 1, tzinfo=datetime.UTC)) for year in (2030, 2040))
    tls = [
        UpstreamTls(cert_pem=late, ca_pem=soon),
        None,
        UpstreamTls(cert_pem=soon, ca_pem=soon + "between" + late),
        UpstreamTls(cert_pem=UNRESOLVED, ca_pem=UNRESOLVED),
        UpstreamTls(ca_pem=soon, is_verified=False),
    ]
    targets = tuple(EgressTarget(host=f"{at}.test", port=443, tls=one) for at, one in enumerate(tls))
    rules = (
        EgressRule(name="default/out", namespace="default", targets=targets),
        EgressRule(name="default/not", namespace="default", targets=targets, is_allow=False),
    )
    found = ExpiryBook().look(SnapshotData(egress=EgressPolicy(rules=rules)))
    assert [(one.path, one.what, one.validity.not_after) for one in found] == [
        ("spec.destinations[0].tls.caSecretName", "the last CA for 0.test", ends(soon)),
        ("spec.destinations[2].tls.clientCertificateSecretName", "our certificate for 2.test", ends(soon)),
        ("spec.destinations[0].tls.clientCertificateSecretName", "our certificate for 0.test", ends(late)),
        ("spec.destinations[2].tls.caSecretName", "the last CA for 2.test", ends(late)),
    ]
    first = next(iter(expiry_diagnostics(found, now=ends(soon) + 1)))
    assert (first.object, first.path) == ("vpcegress default/out", "spec.destinations[0].tls.caSecretName")
    assert first.message == "the last CA for 0.test has expired at 2030-01-01T00:00:00Z"
    assert owner_of(first) == ObjectKey(kind="VPCEgress", namespace="default", name="out")


def test_a_bundle_holds_as_long_as_one_of_its_certificates() -> None:
    years = (2031, 2039, 2035)
    texts = [
        pem(datetime.datetime(year, 1, 1, tzinfo=datetime.UTC), datetime.datetime(year - 10, 1, 1, tzinfo=datetime.UTC))
        for year in years
    ]
    broken = "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n"
    found = read_bundle_validity(broken + "".join(texts) + "-----BEGIN CERTIFICATE-----")
    first, last = read_validity(texts[0]), read_validity(texts[1])
    assert found is not None
    assert first is not None
    assert last is not None
    assert (found.not_before, found.not_after) == (first.not_before, last.not_after)
    assert read_bundle_validity(broken) is read_bundle_validity("") is None
    assert read_validity(broken + texts[0]) is None, "the first one counts, and it cannot be read"


@pytest.mark.parametrize(
    ("left_s", "since_s", "reason", "said"),
    [
        (EXPIRY_WARNING_S + 1, 0.0, None, ""),
        (EXPIRY_WARNING_S - 1, 0.0, Reason.CERTIFICATE_EXPIRES_SOON, "the certificate expires at 2"),
        (0.0, 0.0, Reason.CERTIFICATE_EXPIRES_SOON, "the certificate expires at 2"),
        (-1.0, 0.0, Reason.CERTIFICATE_EXPIRED, "the certificate has expired at 2"),
        (90 * DAY_S, -1.0, Reason.CERTIFICATE_EXPIRED, "the certificate is not valid before 2"),
    ],
)
def test_a_certificate_is_spoken_of_fourteen_days_before_it_expires(
    left_s: float, since_s: float, reason: Reason | None, said: str
) -> None:
    now = 1_900_000_000.0
    one = Expiry(owner="shop/edge", validity=Validity(not_before=now - since_s, not_after=now + left_s))
    found = list(expiry_diagnostics([one], now=now))
    assert [item.reason for item in found] == ([] if reason is None else [reason])
    assert all(item.message.startswith(said) and item.object == "vpcingress shop/edge" for item in found)
    later = list(expiry_diagnostics([one], now=now + 0.5))
    assert reason is None or left_s == 0.0 or later == found, "the text does not change from one look to the next"
