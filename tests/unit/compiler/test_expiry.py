"""Certificates and time: what is read of them, what is said of them and when."""

from __future__ import annotations

import datetime

import pytest

from datum_router.compiler.expiry import Expiry, ExpiryBook, expiry_diagnostics
from datum_router.model.listener import Listener, TlsBinding
from datum_router.model.validity import EXPIRY_WARNING_S, Validity, read_validity
from datum_router.reasons import Reason

trustme = pytest.importorskip("trustme", reason="the core alone makes no certificates; the whole run does")
x509 = pytest.importorskip("cryptography.x509", reason="as above")
CA = trustme.CA()
DAY_S = 86_400.0


def pem(until: datetime.datetime, since: datetime.datetime | None = None) -> str:
    return CA.issue_cert("a.test", not_after=until, not_before=since).cert_chain_pems[0].bytes().decode()


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
    listeners = [Listener(name="a", tls=tuple(bindings)), Listener(name="b", tls=tuple(bindings[:1]))]
    book = ExpiryBook()
    assert [one.owner for one in book.look(listeners)] == ["default/soon", "default/late"]
    assert book.look(listeners) == book.look(listeners)
    assert book.look([]) == []


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
