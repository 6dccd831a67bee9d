"""What a VPCEgress says, from the manifest to what a client of a gateway gets."""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from unittest import mock

import h2.config
import h2.connection
import h2.events
import pytest
import trio
import trustme

from datum_router.model.egress import EgressMode
from datum_router.policy.bucket import TokenBucket
from datum_router.reasons import Reason
from datum_router_proxy.egress import connection, desk, dialing
from datum_router_proxy.testing_egress import NAME, Handler, Rig, everything, http, in_trio, reply, rig, until
from datum_router_proxy.testing_manifests import Manifest, manifest
from datum_router_proxy.testing_peers import full_queue

SERVER = "real.example.test"
TLS = "spec.destinations[0].tls"
Ask = Callable[[Rig], Awaitable[tuple[int, bytes]]]


def egress(made: Rig, tls: Mapping[str, object] | None = None, **spec: object) -> Manifest:
    """Build a VPCEgress that allows the upstream."""
    destination = {"endpoint": NAME, "port": made.upstream, **({} if tls is None else {"tls": dict(tls)})}
    return manifest(
        "VPCEgress",
        "out",
        {"destinations": [destination], "match": {"destinationCidrs": ["127.0.0.0/8"]}, **spec},
    )


def secret(name: str, **data: bytes) -> Manifest:
    """Build a Secret; `tls_crt` stands for `tls.crt`."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": "default"},
        "stringData": {key.replace("_", "."): value.decode() for key, value in data.items()},
    }


def authority(name: str, ca: trustme.CA) -> Manifest:
    return secret(name, ca_crt=ca.cert_pem.bytes())


def identity(name: str, ca: trustme.CA) -> Manifest:
    leaf = ca.issue_cert("gateway.example.test")
    return secret(name, tls_crt=leaf.cert_chain_pems[0].bytes(), tls_key=leaf.private_key_pem.bytes())


async def get(made: Rig) -> tuple[int, bytes]:
    """Ask the upstream for something and return the status, and head and body."""
    async with await made.connect() as stream:
        await stream.send_all(f"GET http://{NAME}:{made.upstream}/ HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        head, body = await reply(stream)
    return int(head[9:12]), head.lower() + body


async def connect(made: Rig) -> tuple[int, bytes]:
    """Ask for a tunnel to the upstream and return the status, and the head; a tunnel is left at once."""
    async with await made.connect() as stream:
        await stream.send_all(f"CONNECT {NAME}:{made.upstream} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        head = await until(stream, b"\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            head += await everything(stream)
    return int(head[9:12]), head.lower()


async def connect_h2(made: Rig) -> tuple[int, bytes]:
    """Do the same over HTTP/2 and return the status and what comes with it."""
    engine = h2.connection.H2Connection()
    engine.initiate_connection()
    engine.send_headers(1, [(":method", "CONNECT"), (":authority", f"{NAME}:{made.upstream}")])
    status, body = 0, b""
    async with await made.connect() as stream:
        await stream.send_all(engine.data_to_send())
        while True:
            for event in engine.receive_data(await stream.receive_some(65_536)):
                if isinstance(event, h2.events.ResponseReceived):
                    status = int(dict(event.headers)[b":status"])
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data
                elif isinstance(event, h2.events.StreamEnded):
                    return status, body


def over_tls(context: ssl.SSLContext, shown: list[str]) -> Handler:
    """Serve HTTPS, one request a connection; `shown` gets whose certificate each client showed, "" for nobody's."""

    async def handler(raw: trio.SocketStream) -> None:
        stream = trio.SSLStream(raw, context, server_side=True, https_compatible=True)
        try:
            await until(stream, b"\r\n\r\n")
            names = dict((stream.getpeercert() or {}).get("subjectAltName", ()))
            shown.append(names.get("DNS", ""))
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nsecret")
        except trio.BrokenResourceError:
            return  # one of the two does not trust the other

    return handler


# --- destinations[].tls -----------------------------------------------------------------------------------------------


@in_trio
async def test_a_destination_over_tls_is_verified_against_the_cas_of_its_secret() -> None:
    ca, other = trustme.CA(), trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(SERVER).configure_cert(server)
    tls = {"enabled": True, "sni": SERVER, "caSecretName": "ca"}
    async with rig(handler=over_tls(server, shown := [])) as made:
        for change, others, said, status in (
            ({}, [authority("ca", ca)], [], 200),
            ({}, [authority("ca", other)], [], 502),
            ({"sni": "other.example.test"}, [authority("ca", ca)], [], 502),
            ({"minVersion": "1.3"}, [authority("ca", ca)], [], 200),
            ({}, [], [f"{TLS}.caSecretName"], 502),
            ({"caSecretName": "gone"}, [authority("ca", ca)], [f"{TLS}.caSecretName"], 502),
        ):
            assert made.apply(egress(made, {**tls, **change}), *others) == said
            assert (await get(made))[0] == status, (change, others)
    assert shown == ["", ""], "nobody asked who we are"


@in_trio
async def test_a_destination_that_asks_for_a_certificate_gets_that_of_the_secret_and_nothing_is_sent_without() -> None:
    ca, clients, other = trustme.CA(), trustme.CA(), trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(SERVER).configure_cert(server)
    clients.configure_trust(server)
    server.verify_mode = ssl.CERT_REQUIRED
    own = {"clientCertificateSecretName": "own"}
    path = f"{TLS}.clientCertificateSecretName"
    half = secret("own", tls_crt=clients.issue_cert("gateway.example.test").cert_chain_pems[0].bytes())
    async with rig(handler=over_tls(server, shown := [])) as made:
        for change, others, said, status in (
            (own, [identity("own", clients)], [], 200),
            ({}, [], [], 502),
            (own, [identity("own", other)], [], 502),
            (own, [], [path], 502),
            (own, [half], [path], 502),
            (own, [identity("own", clients)], [], 200),
        ):
            tls = {"enabled": True, "sni": SERVER, "caSecretName": "ca", **change}
            assert made.apply(egress(made, tls), authority("ca", ca), *others) == said
            assert (await get(made))[0] == status, (change, others)
    assert shown == ["gateway.example.test"] * 2


@in_trio
async def test_a_destination_whose_certificate_of_ours_is_missing_is_not_shaken_hands_with() -> None:
    ca = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(SERVER).configure_cert(server)
    tls = {"enabled": True, "sni": SERVER, "caSecretName": "ca"}
    async with rig(handler=over_tls(server, shown := [])) as made:
        made.apply(egress(made, {**tls, "clientCertificateSecretName": "gone"}), authority("ca", ca))
        assert (await get(made))[0] == 502, "though the server asks nobody"
        assert shown == []
        made.apply(egress(made, tls), authority("ca", ca))
        assert (await get(made))[0] == 200


# --- limits -----------------------------------------------------------------------------------------------------------


class Stopped(TokenBucket):
    """A bucket whose clock stands still."""

    __slots__ = ()

    def take(self, now: float) -> float:
        return super().take(0.0)


@pytest.mark.parametrize("ask", [get, connect])
@pytest.mark.parametrize(
    ("limit", "most"),
    [({"requestsPerSecond": 2}, 2), ({"requestsPerSecond": 1, "burstSize": 3}, 3)],
    ids=["rate", "burst"],
)
@in_trio
async def test_beyond_its_rate_limit_a_client_is_told_to_come_again(
    ask: Ask, limit: Mapping[str, int], most: int
) -> None:
    with mock.patch.object(desk, "TokenBucket", Stopped):
        async with rig(handler=http) as made:
            assert made.apply(egress(made, rateLimit=limit)) == []
            assert [(await ask(made))[0] for _ in range(most + 1)] == [200] * most + [429]
            assert ("deny", "rate_limited") in made.decisions()
            _, said = await get(made)
            assert b"\r\nretry-after: 1\r\n" in said
            assert b"egress_rate_limited" in said
            made.apply(egress(made))
            assert (await ask(made))[0] == 200


@in_trio
async def test_a_tunnel_is_ended_after_the_silence_of_its_vpcegress() -> None:
    async with rig() as made:
        assert made.apply(egress(made, timeouts={"streamIdle": "50ms"})) == []
        stream = await made.tunnel()
        with pytest.raises(trio.BrokenResourceError):
            await everything(stream)
        await made.recorder.until(lambda: bool(made.tunnels()))
        assert [one[2] for one in made.tunnels()] == ["idle_timeout"]


@in_trio
async def test_a_request_is_given_up_after_the_time_of_its_vpcegress() -> None:
    async def silent(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # given up
            await everything(stream)

    async with rig(handler=silent) as made:
        assert made.apply(egress(made, timeouts={"request": "50ms"})) == []
        assert (await get(made))[0] == 504


def dial_errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged of dials that failed, without the address."""
    return [vars(one)["error"].partition(": ")[2] for one in caplog.records if one.name == dialing.__name__]


@pytest.mark.parametrize("ask", [get, connect, connect_h2])
@in_trio
async def test_a_destination_that_does_not_answer_is_given_up_after_the_connect_timeout(
    ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, dialing.__name__)
    async with rig() as made:
        with full_queue() as made.upstream:
            assert made.apply(egress(made, timeouts={"connect": "60ms"}, retries={"maxRetries": 0})) == []
            status, said = await ask(made)
    assert status == 504
    assert b"connect_timeout: the upstream did not accept a connection in time" in said
    assert [reason for _, reason in made.recorder.reasons] == [Reason.CONNECT_TIMEOUT]
    assert ("allow", "allowed_by_rule") in made.decisions(), "it was the destination, not the policy"
    if ask is get:
        assert [one.reason for one in made.recorder.outcomes] == [Reason.CONNECT_TIMEOUT]
        assert [(one.status, one.reason) for one in made.recorder.events] == [(504, Reason.CONNECT_TIMEOUT)]
    else:
        assert dial_errors(caplog) == ["not connected within 0.06 s"]


@in_trio
async def test_a_redirected_handshake_is_refused_after_the_connect_timeout(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, dialing.__name__)
    async with rig() as made:
        with full_queue() as port:
            monkeypatch.setattr(connection, "original_destination", lambda _channel: ("127.0.0.1", port))
            match = {"hostnames": [NAME], "destinationCidrs": ["127.0.0.0/8"]}
            made.apply(manifest("VPCEgress", "out", {"match": match, "timeouts": {"connect": "60ms"}}))
            stream = trio.SSLStream(
                await made.connect(EgressMode.TLS), ssl.create_default_context(), server_hostname=NAME
            )
            with pytest.raises(trio.BrokenResourceError) as caught:
                await stream.do_handshake()
        assert ("allow", "allowed_by_rule") in made.decisions()
    assert "ACCESS_DENIED" in str(caught.value.__cause__)
    assert dial_errors(caplog) == ["not connected within 0.06 s"]


@pytest.mark.parametrize("ask", [get, connect])
@in_trio
async def test_the_next_address_is_tried_after_the_connect_timeout_of_one(ask: Ask) -> None:
    async with rig(handler=http, addresses=("127.0.0.9", "127.0.0.1")) as made:
        with full_queue("127.0.0.9", made.upstream):
            assert made.apply(egress(made, timeouts={"connect": "60ms"})) == []
            assert [(await ask(made))[0] for _ in range(2)] == [200, 200]
    assert made.recorder.reasons == []


@pytest.mark.parametrize(("most", "failures"), [(0, 1), (1, 0)])
@pytest.mark.parametrize("ask", [get, connect])
@in_trio
async def test_other_addresses_are_tried_as_often_as_the_vpcegress_says(ask: Ask, most: int, failures: int) -> None:
    async with rig(handler=http, addresses=("127.0.0.9", "127.0.0.1")) as made:
        assert made.apply(egress(made, retries={"maxRetries": most})) == []
        # Requests take the addresses in turn, tunnels in the order of the name.
        asked = 2 if ask is get else 1
        statuses = sorted([(await ask(made))[0] for _ in range(asked)])
        assert statuses == [200] * (asked - failures) + [502] * failures
