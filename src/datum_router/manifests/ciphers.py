"""Cipher suites of TLS 1.2 that may be named: those with forward secrecy and AEAD, by both of their names.

Sources: RFC 9325 section 4.2 (what is recommended), RFC 9113 appendix A (what HTTP/2 forbids: all others), RFC 8422 and
RFC 7905 (the IANA names). TLS 1.3 has suites of its own (RFC 8446 section 9.1), of which none can be switched off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

TLS12_SUITES: Final[Mapping[str, str]] = {
    "ECDHE-ECDSA-AES128-GCM-SHA256": "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256": "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384": "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384": "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305": "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "ECDHE-RSA-CHACHA20-POLY1305": "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
}
"""OpenSSL's name -> IANA's."""
TLS13_SUITES: Final = frozenset(
    {
        "TLS_AES_128_GCM_SHA256",
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
        "TLS_AES_128_CCM_SHA256",
        "TLS_AES_128_CCM_8_SHA256",
    }
)
_BY_NAME: Final[Mapping[str, str]] = {
    name.upper(): openssl for openssl, iana in TLS12_SUITES.items() for name in (openssl, iana)
}


def openssl_suite(name: str) -> str:
    """Return OpenSSL's name of a suite that may be named by either, empty if it may not."""
    return _BY_NAME.get(name.upper(), "")


def openssl_suites(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return OpenSSL's names of suites that validation has let through, each once, in their order."""
    return tuple(dict.fromkeys(suite for name in names if (suite := openssl_suite(name))))


def suite_problem(name: str) -> tuple[str, str]:
    """Return message and hint for a suite that may not be named, both empty if it may."""
    if openssl_suite(name):
        return "", ""
    if name.upper() in TLS13_SUITES:
        return (
            f"found {name}, which is a suite of TLS 1.3, expected suites of TLS 1.2",
            "remove it: the suites of TLS 1.3 are always on",
        )
    return (
        f"found {name}, expected one of {', '.join(TLS12_SUITES)}",
        "only suites with forward secrecy and AEAD are spoken (RFC 9325)",
    )
