"""Redirects to HTTPS and Strict-Transport-Security: whatever is asked, whatever VPCIngresses want for their hosts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.compiler.edge import host_policy
from datum_router.compiler.edgelink import Edge
from datum_router.compiler.link import LinkedRule
from datum_router.filters.base import apply_request, apply_response
from datum_router.manifests.meta import ObjectKey
from datum_router.manifests.vpcingress import IngressProtocol, VPCIngress
from datum_router.model.listener import Listener
from datum_router.model.request import LocalReply, RequestHead
from datum_router.reasons import Reason
from datum_router.testing.factories import make_head, make_response, make_rule
from datum_router.testing.strategies import paths

HOSTS: Mapping[str, tuple[str, ...]] = {"a": ("a.test", "*.a.test"), "b": ("b.test", "own.a.test")}
"""What two VPCIngresses have."""
OWNERS = {"a.test": "a", "x.a.test": "a", "x.own.a.test": "a", "b.test": "b", "own.a.test": "b"}
ASKED = (*OWNERS, "c.test", "xa.test", "x.b.test", "test", "[::1]")

PORTS = st.sampled_from([443, 8080, 8443, 9443])
LISTENERS = st.lists(st.tuples(st.sampled_from(IngressProtocol), PORTS), max_size=3)
HSTS = st.none() | st.fixed_dictionaries(
    {
        "maxAgeSeconds": st.sampled_from([0, 1, 31_536_000]),
        "includeSubdomains": st.booleans(),
        "preload": st.booleans(),
    }
)


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    listeners = [
        {"name": f"l{at}", "protocol": protocol.value, "port": port}
        for at, (protocol, port) in enumerate(draw(LISTENERS))
    ]
    tls = draw(st.sampled_from([None, {"secretName": "s"}, {"mode": "passthrough"}]))
    return {"httpsRedirect": draw(st.booleans()), "hsts": draw(HSTS), "tls": tls, "listeners": listeners}


def made(name: str, spec: Mapping[str, Any]) -> VPCIngress:
    raw = {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCIngress",
        "metadata": {"name": name},
        "spec": {"host": HOSTS[name][0], "hosts": HOSTS[name][1:], **spec},
    }
    return msgspec.convert(raw, VPCIngress, strict=False)


@st.composite
def requests(draw: st.DrawFn) -> tuple[RequestHead, str, int | None]:
    """Draw a request with the host, and the port if there is one, that it names."""
    host = draw(st.sampled_from(ASKED))
    port = draw(st.sampled_from([None, 80, 443, 8080, 9090]))
    target = draw(paths()) + draw(st.sampled_from(["", "?", "?q=1", "?/../&to=//evil.test"]))
    authority = draw(st.sampled_from([host, host.upper()])) + (f":{port}" if port is not None else "")
    scheme, method = draw(st.sampled_from(["http", "https"])), draw(st.sampled_from(["GET", "POST"]))
    head = make_head(target, method=method, host=host, authority=authority, scheme=scheme)
    return head, host, port


def https_port(spec: Mapping[str, Any]) -> int:
    """Return the port of the first listener that speaks TLS, those that are there without being asked for included."""
    secure = [item["port"] for item in spec["listeners"] if item["protocol"] in ("HTTPS", "TLS")]
    if not spec["listeners"] and spec["tls"] is not None:
        secure = [8443]
    return secure[0] if secure else 443


@settings(max_examples=400)
@given(
    wanted=st.fixed_dictionaries({"a": specs(), "b": specs()}),
    protocol=st.sampled_from([IngressProtocol.HTTP, IngressProtocol.HTTPS]),
    is_scheme_told=st.booleans(),
    asked=requests(),
    has_own=st.booleans(),
)
def test_who_is_sent_where_and_who_is_told_to_stay_there(
    wanted: dict[str, dict[str, Any]],
    protocol: IngressProtocol,
    is_scheme_told: bool,
    asked: tuple[RequestHead, str, int | None],
    has_own: bool,
) -> None:
    policies = [
        host_policy(
            made(name, spec),
            ObjectKey(kind="VPCIngress", namespace="default", name=name),
            HOSTS[name],
            protocol,
            is_scheme_told=is_scheme_told,
        )
        for name, spec in wanted.items()
    ]
    edge = Edge(Listener(name="l", policies=tuple(policies)))
    head, host, port = asked
    spec = wanted[OWNERS[host]] if host in OWNERS else {"httpsRedirect": False, "hsts": None}

    redirect = edge.redirect(head)
    is_sent = spec["httpsRedirect"] and protocol is IngressProtocol.HTTP and head.scheme == "http"
    assert (redirect is not None) is is_sent
    if redirect is not None:
        reply = apply_request(redirect.filters, head)
        assert isinstance(reply, LocalReply)
        # Port 80 is what is mapped to the listener, and then so is 443; who names another one knows the listeners.
        to = 443 if port in (None, 80) else https_port(spec)
        where = f"https://{host}{'' if to == 443 else f':{to}'}{head.target}"
        assert (reply.status, reply.reason) == (308, Reason.REDIRECTED)
        assert reply.headers == ((b"location", where.encode()),)

    rule = make_rule()
    dressed = edge.dress(LinkedRule(rule, (), {}), head)
    own = [b"max-age=7"] if has_own else []
    answer = apply_response(
        dressed.filters, make_response(headers=[("strict-transport-security", "max-age=7")] if has_own else [])
    )
    told = own
    if spec["hsts"] is not None and head.scheme == "https" and (protocol is IngressProtocol.HTTPS or is_scheme_told):
        hsts = spec["hsts"]
        flags = "; includeSubDomains" * hsts["includeSubdomains"] + "; preload" * hsts["preload"]
        told = [f"max-age={hsts['maxAgeSeconds']}{flags}".encode()]
        assert dressed.reply_fields == ((b"strict-transport-security", told[0]),)
    else:
        assert dressed.reply_fields == ()
    assert list(answer.headers.get_all(b"strict-transport-security")) == told
