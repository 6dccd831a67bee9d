# ruff: noqa: SIM117  # nested contexts stand in the order of the story
"""Sockets bound to interfaces, and the attachment that a request came in by; the loopback interface stands for one."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
import trustme

from datum_router.errors import ConfigError, UpstreamError
from datum_router.model.endpoint import make_endpoint
from datum_router.model.listener import Listener, TlsBinding
from datum_router.model.policy import ActiveHealthPolicy, ProbeType, RetryPolicy
from datum_router.model.route import BackendRef, Match, RuleId
from datum_router.model.service import Service, ServiceKey, UpstreamProtocol, UpstreamTls
from datum_router.reasons import Reason
from datum_router_proxy.plugin import datum_router_health_checks
from datum_router_proxy.prober import make_prober
from datum_router_proxy.settings import ProxySettings, from_text
from datum_router_proxy.testing_clients import H1Client, H2Client, client
from datum_router_proxy.testing_peers import Exchange, bounded, gateway, make_rule, make_service, upstream
from datum_router_proxy.vpc import (
    MAX_INTERFACES,
    VpcInterfaces,
    bind_to_device,
    incoming_interface,
    interface_index,
    parse_interfaces,
)

NO_SUCH = "srp-nowhere0"


async def hello(exchange: Exchange) -> None:
    await exchange.body()
    await exchange.reply(200, b"hello")


def in_vpc(port: int, vpc: str, protocol: UpstreamProtocol = UpstreamProtocol.HTTP) -> Service:
    service = make_service([], protocol=protocol)
    return msgspec.structs.replace(service, endpoints=(make_endpoint("127.0.0.1", port, vpc=vpc),))


# --- settings ------------------------------------------------------------------------------------------------------


def test_interfaces_are_read_by_vpc() -> None:
    text = " production/shop=galactic0, blue.team/net-1=G0000000jU00GV ,"
    assert parse_interfaces(text, name="x") == {"production/shop": "galactic0", "blue.team/net-1": "G0000000jU00GV"}
    assert parse_interfaces("", name="x") == {}


@pytest.mark.parametrize(
    "text",
    [
        "shop=galactic0",
        "a/b",
        "a/b=",
        "a/b=has/slash",
        "a/b=sixteen-letters-",
        "a/b=with blank",
        "a/b=..",
        "A/b=galactic0",
        "/=galactic0",
        "/ten-digits=galactic0",
        "/0123456789=galactic0",
        "a/b=x,a/b=y",
        ",".join(f"a/n{number}=x" for number in range(MAX_INTERFACES + 1)),
    ],
)
def test_what_is_no_interface_is_refused_with_the_settings_name(text: str) -> None:
    with pytest.raises(ConfigError, match="proxy setting vpc_interfaces"):
        from_text({"vpc_interfaces": text})


def test_settings_are_read_from_text() -> None:
    settings = from_text({"vpc_interfaces": "a/b=lo", "vpc_required": "true", "vpc_attachments": "a/c=lo"})
    assert settings.vpcs().device("a/b") == "lo"
    assert settings.attachments() == {"lo": "a/c"}
    with pytest.raises(ConfigError, match="expected true or false"):
        from_text({"vpc_required": "perhaps"})


def test_a_vpc_without_an_object_is_named_by_its_identifier() -> None:
    vpcs = from_text({"vpc_interfaces": "/jU=galactic0,a/b=galactic1", "vpc_required": "true"}).vpcs()
    assert [vpcs.device(vpc) for vpc in ("/jU", "a/b")] == ["galactic0", "galactic1"]
    for vpc in ("/ju", "jU"):  # letters of base62 differ by their case
        with pytest.raises(UpstreamError, match="no interface in it"):
            vpcs.device(vpc)
    with pytest.raises(ConfigError, match="proxy setting vpc_attachments"):
        from_text({"vpc_attachments": "/jU=galactic0"})


def test_an_interface_has_one_attachment() -> None:
    with pytest.raises(ConfigError, match="lo is given to a/b and to a/c"):
        ProxySettings(vpc_attachments="a/b=lo,a/c=lo")


def test_an_unmapped_vpc_is_dialled_unbound_unless_an_interface_is_required() -> None:
    assert VpcInterfaces({"a/b": "lo"}).device("a/other") == ""
    strict = VpcInterfaces({"a/b": "lo"}, is_required=True)
    assert strict.device("") == "", "the gateway's own network needs none"
    with pytest.raises(UpstreamError, match="vpc a/other: this gateway has no interface in it") as caught:
        strict.device("a/other")
    assert caught.value.reason is Reason.CONNECT_FAILED
    assert caught.value.is_unprocessed


# --- dialling and probing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [UpstreamProtocol.HTTP, UpstreamProtocol.H2C])
def test_a_request_into_a_vpc_leaves_by_its_interface(protocol: UpstreamProtocol) -> None:
    async def main() -> None:
        async with upstream(hello, protocol) as server:
            settings = ProxySettings(vpc_interfaces="a/shop=lo", vpc_required=True)
            async with gateway([in_vpc(server.port, "a/shop", protocol)], settings=settings) as running:
                async with client(running.port, "h1") as peer:
                    assert (await peer.request("GET", "/")).body == b"hello"

    bounded(main)


@pytest.mark.parametrize(
    ("interfaces", "status"),
    [(f"a/shop={NO_SUCH}", 502), ("a/other=lo", 503)],
)
def test_without_the_interface_nothing_is_sent_by_another(interfaces: str, status: int) -> None:
    async def main() -> None:
        async with upstream(hello) as server:
            settings = ProxySettings(vpc_interfaces=interfaces, vpc_required=True)
            rule = make_rule(retry=RetryPolicy(max_retries=0))
            async with gateway([in_vpc(server.port, "a/shop")], [rule], settings=settings) as running:
                async with client(running.port, "h1") as peer:
                    assert (await peer.request("GET", "/")).status == status
                outcome = running.recorder.outcomes[0]
                assert outcome.reason is Reason.CONNECT_FAILED
                assert running.plane.stats()["upstream_connections"] == 0, "the pool's counts are as before"

    bounded(main)


def test_another_port_than_the_endpoints_stays_in_its_vpc() -> None:
    async def main() -> None:
        async with upstream(hello) as server:
            service = in_vpc(1, "a/shop")
            backend = BackendRef(service=service.key, port=server.port)
            rule = msgspec.structs.replace(make_rule(retry=RetryPolicy(max_retries=0)), destinations=(backend,))
            for interface, status in (("lo", 200), (NO_SUCH, 502)):
                settings = ProxySettings(vpc_interfaces=f"a/shop={interface}")
                async with gateway([service], [rule], settings=settings) as running:
                    async with client(running.port, "h1") as peer:
                        assert (await peer.request("GET", "/")).status == status

    bounded(main)


CA = trustme.CA()


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest) -> UpstreamTls | None:
    return UpstreamTls(ca_pem=CA.cert_pem.bytes().decode()) if request.param == "tls" else None


@pytest.mark.parametrize("kind", [ProbeType.HTTP, ProbeType.TCP])
def test_probes_leave_by_the_interface_of_the_vpc(kind: ProbeType, tls: UpstreamTls | None) -> None:
    async def answer(stream: trio.abc.Stream) -> None:
        try:
            if await stream.receive_some(65536):
                await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            await stream.aclose()
        except trio.BrokenResourceError:
            return

    async def main() -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        served: trio.SocketListener | trio.SSLListener[trio.SocketStream] = listener
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            CA.issue_cert("127.0.0.1").configure_cert(context)
            served = trio.SSLListener(listener, context)
        endpoint = make_endpoint("127.0.0.1", listener.socket.getsockname()[1], vpc="a/shop")
        policy = ActiveHealthPolicy(type=kind)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, answer, [served])
            bound = await make_prober(kind, VpcInterfaces({"a/shop": "lo"})).probe(endpoint, policy, tls)
            astray = await make_prober(kind, VpcInterfaces({"a/shop": NO_SUCH})).probe(endpoint, policy, tls)
            refused = await make_prober(kind, VpcInterfaces(is_required=True)).probe(endpoint, policy, tls)
            nursery.cancel_scope.cancel()
        assert bound.is_ok, bound.detail
        assert (astray.is_ok, astray.detail) == (False, "no such device")
        assert (refused.is_ok, refused.detail) == (False, "no interface in the vpc")

    trio.run(main)


def test_probers_take_the_data_planes_interfaces_and_pass_over_the_rest() -> None:
    specs = {spec.type: spec for spec in datum_router_health_checks()}
    settings = {"vpc_interfaces": f"a/shop={NO_SUCH}", "another_planes_setting": "1"}
    prober = specs[ProbeType.TCP].make(settings)
    result = trio.run(prober.probe, make_endpoint("127.0.0.1", 1, vpc="a/shop"), ActiveHealthPolicy(), None)
    assert result.detail == "no such device"


# --- the interface that a connection came in by --------------------------------------------------------------------


@pytest.fixture(params=["127.0.0.1", "::1"])
def pair(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    address = str(request.param)
    try:
        server = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    except OSError as exc:
        pytest.skip(f"no loopback address {address} here: {exc.strerror}")
    with server, socket.create_connection(server.getsockname()[:2], timeout=10):
        accepted, _ = server.accept()
        with accepted:
            yield accepted


def test_the_kernel_says_by_which_interface_a_connection_came(pair: socket.socket) -> None:
    assert incoming_interface(pair) == "lo"


def test_a_socket_without_interfaces_came_by_none() -> None:
    first, second = socket.socketpair()
    with first, second:
        assert incoming_interface(first) == ""
    assert incoming_interface(first) == "", "nor did a closed one"


@pytest.mark.parametrize(
    ("data", "index"),
    [
        (b"", 0),
        (b"\x00" * 64, 0),
        (struct.pack("@Nii", 28, 0, 8) + struct.pack("@i", 7) + b"\x7f" * 8, 7),
        (struct.pack("@Nii", 36, 41, 2) + b"\xfd" * 16 + struct.pack("@i", 9), 9),
        (struct.pack("@Nii", 20, 1, 1) + b"\x01" * 8 + struct.pack("@Nii", 28, 0, 8) + struct.pack("@3i", 3, 0, 0), 3),
        (struct.pack("@Nii", 400, 0, 8) + b"\x00" * 12, 0),
        (struct.pack("@Nii", 17, 0, 8) + b"\x01", 0),
    ],
)
def test_the_index_is_found_among_control_messages(data: bytes, index: int) -> None:
    assert interface_index(data) == index


def test_binding_to_no_interface_fails() -> None:
    with socket.socket() as sock, pytest.raises(OSError, match="No such device"):
        bind_to_device(sock, NO_SUCH)


@pytest.mark.parametrize("down", ["h1", "h2", "tls"])
def test_a_route_with_a_source_attachment_takes_what_came_in_by_it(down: str) -> None:
    """Two gateways with the same rules, one of which is attached where the client's packets come from."""
    leaf = CA.issue_cert("127.0.0.1")
    chain = "".join(blob.bytes().decode() for blob in leaf.cert_chain_pems)
    binding = TlsBinding(cert_pem=chain, key_pem=leaf.private_key_pem.bytes().decode())
    listener = Listener(name="test", tls=(binding,) if down == "tls" else ())
    trust = ssl.create_default_context()
    CA.configure_trust(trust)

    @asynccontextmanager
    async def connected(port: int) -> AsyncIterator[H1Client | H2Client]:
        if down == "tls":
            stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=trust, https_compatible=True)
            async with stream:
                yield H1Client(stream)
            return
        async with client(port, down) as peer:
            yield peer

    async def attached(exchange: Exchange) -> None:
        await exchange.body()
        await exchange.reply(200, b"attached")

    async def main() -> None:
        async with upstream(attached) as first, upstream(hello) as second:
            one, other = make_service([first.port], key=ServiceKey("default/attached")), make_service([second.port])
            match = Match(source_attachment="default/edge")
            by_it = msgspec.structs.replace(make_rule(one.key), id=RuleId("default/by#0"), match=match)
            for attachments, expected in (("default/edge=lo", b"attached"), ("default/edge=eth99", b"hello")):
                settings = ProxySettings(vpc_attachments=attachments)
                async with gateway([one, other], [by_it, make_rule()], settings=settings, listener=listener) as running:
                    async with connected(running.port) as peer:
                        for path in ("/", "/again", "/again"):  # by the pipeline, and by what is remembered of it
                            assert (await peer.request("GET", path)).body == expected

    bounded(main)
