"""X-Forwarded-Client-Cert: Envoy's format, and no certificate that could write a part of it."""

from __future__ import annotations

import pytest

from datum_router.policy.client_cert_header import ClientCertificate, element, rfc2253
from datum_router.policy.peer_names import PeerNames

ALL = ("Cert", "Chain", "Subject", "URI", "DNS")
WEB = "spiffe://example.org/ns/shop/sa/web"
SUBJECT = ((("countryName", "DE"),), (("organizationName", "Shop, Inc"),), (("commonName", "web"),))


def test_an_element_is_as_envoy_writes_it() -> None:
    certificate = ClientCertificate(
        digest="ab" * 32,
        names=PeerNames(dns=("web.shop.svc", "web"), uris=(WEB,)),
        subject=SUBJECT,
        pem="-----BEGIN CERTIFICATE-----\nMA+/=\n",
        chain_pem="-----BEGIN CERTIFICATE-----\nMB\n",
    )
    assert element(certificate, ALL, by=("spiffe://example.org/ns/edge/sa/router",)).decode().split(";") == [
        "By=spiffe://example.org/ns/edge/sa/router",
        "Hash=" + "ab" * 32,
        'Cert="-----BEGIN%20CERTIFICATE-----%0AMA%2B%2F%3D%0A"',
        'Chain="-----BEGIN%20CERTIFICATE-----%0AMB%0A"',
        'Subject="CN=web,O=Shop\\, Inc,C=DE"',
        f"URI={WEB}",
        "DNS=web.shop.svc",
        "DNS=web",
    ]
    assert element(certificate, ()) == b"Hash=" + b"ab" * 32


@pytest.mark.parametrize(
    ("uri", "written"),
    [
        ("spiffe://a/b;URI=spiffe://a/admin", '"spiffe://a/b;URI=spiffe://a/admin"'),
        ('spiffe://a/b";URI=x', '"spiffe://a/b\\";URI=x"'),
        ("spiffe://a/b\\", '"spiffe://a/b\\\\"'),
        ("spiffe://a/b\r\nX-Admin: 1", '"spiffe://a/b%0D%0AX-Admin: 1"'),
        ("spiffe://a/b,Hash=0", '"spiffe://a/b,Hash=0"'),
        ("spiffe://a/\u00e9\0", "spiffe://a/%C3%A9%00"),
        ("", '""'),
    ],
)
def test_a_name_cannot_end_its_own_value(uri: str, written: str) -> None:
    found = element(ClientCertificate(digest="0", names=PeerNames(uris=(uri,))), ("URI",))
    assert found.decode() == f"Hash=0;URI={written}"


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("a,b+c", "CN=a\\,b\\+c"),
        ('a"b\\', 'CN=a\\"b\\\\'),
        ("#a", "CN=\\#a"),
        (" a ", "CN=\\ a\\ "),
        ("a\r\nb", "CN=a\\0D\\0Ab"),
        ("\u00e9", "CN=\\C3\\A9"),
        ("", "CN="),
    ],
)
def test_a_subject_is_escaped_as_rfc_2253_has_it(value: str, written: str) -> None:
    assert rfc2253(((("commonName", value),),)) == written


def test_several_attributes_of_one_component_and_unknown_ones() -> None:
    subject = ((("domainComponent", "org"),), (("commonName", "a"), ("1.2.3", "b")))
    assert rfc2253(subject) == "CN=a+1.2.3=b,DC=org"
