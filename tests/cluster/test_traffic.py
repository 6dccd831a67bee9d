"""What edits of a cluster's objects do to requests under way: nothing, where something good was in force before."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import trustme

from tests.cluster.load import Load, running_load
from tests.cluster.plane import Plane
from tests.cluster.stage import (
    Stage,
    binding,
    ingress,
    install,
    issued_secret,
    kube_service,
    one_endpoint,
    own_address,
    route,
    secret_access,
    service,
)
from tests.cluster.test_gateway import serial_of
from tests.conftest import Backend, answer, eventually
from tests.ports import free_ports
from tests.processes import ServiceProcess

MOVES = 12
"""How often each thing is done; without the wait for what belongs together about every third move cost a request."""


@pytest.fixture(scope="module")
def stage(plane: Plane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    install(plane)
    one = Stage(plane, tmp_path_factory.mktemp("traffic"))
    yield one
    one.stop()


@pytest.fixture(scope="module")
def gateway(stage: Stage) -> ServiceProcess:
    stage.controller()
    # Six times the default: on a busy machine two requests to the API may be further apart than that.
    return stage.gateway(DATUM_ROUTER_WORKERS="2", DATUM_ROUTER_DEBOUNCE_SECS="0.3")


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    one = Backend(answer(b"ok"), own_address())
    yield one
    one.close()


def bound(stage: Stage, gateway: ServiceProcess, there: str, backend: Backend) -> dict[str, object]:
    """Put a route to a Service with one endpoint; return its EndpointSlice."""
    stage.put(service(there, "api"))
    stage.put(route(there, "api", "api", path=f"/{there}"))
    stage.put(kube_service(there, "api"))
    stage.put(binding(there, "api", "api"))
    first = one_endpoint(there, "api", "first", str(backend.host), backend.port)
    stage.put(first)
    eventually(lambda: gateway.get(f"/{there}")[0] == 200, "the endpoint")
    return first


def asked_until(load: Load, more: int = 30) -> None:
    """Let some more requests end."""
    wanted = load.total + more
    eventually(lambda: load.total >= wanted, "more requests")


def test_an_endpoint_that_moves_between_slices_is_never_missing(
    stage: Stage, gateway: ServiceProcess, namespace: Callable[[], str], backend: Backend
) -> None:
    there = namespace()
    first = bound(stage, gateway, there, backend)
    second = one_endpoint(there, "api", "second", str(backend.host), backend.port)
    full = {"endpoints": second["endpoints"]}
    empty: dict[str, object] = {"endpoints": []}
    stage.put({**second, **empty})
    # Both are written at once, as controllers do: one after the other, a busy machine may take longer in between than a
    # gateway waits for what belongs together.
    with running_load(gateway.port(), [f"/{there}"], rate=200) as load, ThreadPoolExecutor(2) as writers:
        for index in range(MOVES):
            source, target = (first, second) if index % 2 == 0 else (second, first)
            list(writers.map(stage.patch, (source, target), (empty, full)))
            asked_until(load)
    assert load.bad == 0, (load.statuses, load.errors[:3])


def test_what_is_deleted_and_created_again_at_once_is_never_missing(
    stage: Stage, gateway: ServiceProcess, namespace: Callable[[], str], backend: Backend
) -> None:
    there = namespace()
    bound(stage, gateway, there, backend)
    replaced = [
        kube_service(there, "api"),
        binding(there, "api", "api"),
        service(there, "api"),
        route(there, "api", "api", path=f"/{there}"),
    ]
    with running_load(gateway.port(), [f"/{there}"], rate=200) as load:
        for one in replaced * (MOVES // len(replaced)):
            stage.delete(one)
            stage.put(one)
            asked_until(load)
    assert load.bad == 0, (load.statuses, load.errors[:3])


def test_a_binding_that_comes_to_name_another_service_under_load(
    stage: Stage, gateway: ServiceProcess, namespace: Callable[[], str], backend: Backend
) -> None:
    there = namespace()
    bound(stage, gateway, there, backend)
    with running_load(gateway.port(), [f"/{there}"], rate=200) as load:
        before = "first"
        for index in range(MOVES):
            name = f"next-{index}"
            stage.put(kube_service(there, name))
            stage.put(one_endpoint(there, name, name, str(backend.host), backend.port))
            stage.put(binding(there, "api", "api", serviceRef={"name": name}))
            stage.delete(one_endpoint(there, "", before, "", 0))
            before = name
            asked_until(load)
    assert load.bad == 0, (load.statuses, load.errors[:3])


def test_a_route_serves_a_service_that_is_created_just_before_it_names_it(
    stage: Stage, gateway: ServiceProcess, namespace: Callable[[], str], backend: Backend
) -> None:
    """Each kind has a watch of its own: the route's edit may be known before the service is."""
    there = namespace()
    stage.put(service(there, "s", backend.port, address=str(backend.host)))
    stage.put(route(there, "live", "s", path=f"/{there}"))
    eventually(lambda: gateway.get(f"/{there}")[0] == 200, "the route")
    with running_load(gateway.port(), [f"/{there}"], rate=200) as load:
        before = "s"
        for index in range(MOVES):
            stage.put(service(there, f"s-{index}", backend.port, address=str(backend.host)))
            stage.put(route(there, "live", f"s-{index}", path=f"/{there}"))
            stage.delete(service(there, before))
            before = f"s-{index}"
            asked_until(load)
    assert load.bad == 0, (load.statuses, load.errors[:3])


def test_programmed_is_true_only_when_every_worker_of_every_gateway_serves_it(
    stage: Stage, gateway: ServiceProcess, namespace: Callable[[], str], backend: Backend
) -> None:
    there = namespace()
    stage.put(service(there, "a", backend.port, address=str(backend.host)))
    other = stage.gateway(DATUM_ROUTER_WORKERS="2")

    def shown(port: int) -> tuple[int, str | None]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", f"/{there}")
        found = connection.getresponse()
        found.read()
        connection.close()
        return found.status, found.getheader("x-edit")

    try:
        ports = [gateway.port(), other.port()]
        for index in range(MOVES):
            change = {"set": [{"name": "x-edit", "value": str(index)}]}
            filters = [{"type": "ResponseHeaderModifier", "responseHeaderModifier": change}]
            live = stage.put(route(there, "live", "a", path=f"/{there}", filters=filters))
            eventually(lambda live=live: stage.conditions(live).get("Programmed") == ("True", "Programmed"), "in force")  # type: ignore[misc]
            assert {shown(port) for port in ports for _ in range(8)} == {(200, str(index))}
        digests = {str(one.page("/stats")["digest"]) for one in (gateway, other)}  # type: ignore[index]
        assert len(digests) == 1
    finally:
        other.stop()


# --- listeners and certificates ---------------------------------------------------------------------------------------


class Handshakes:
    """A new TLS connection and a request on it, one after the other, until stopped."""

    def __init__(self, port: int, host: str, trust: ssl.SSLContext) -> None:
        self.good = 0
        self.errors: list[str] = []
        self._over = threading.Event()
        self._args = (port, host, trust)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        port, host, trust = self._args
        while not self._over.wait(0.01):
            try:
                with (
                    socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
                    trust.wrap_socket(plain, server_hostname=host) as secured,
                ):
                    secured.sendall(b"GET / HTTP/1.1\r\nhost: %b\r\nconnection: close\r\n\r\n" % host.encode())
                    found = secured.recv(4096)
                    assert b" 200 " in found, found
                self.good += 1
            except (OSError, AssertionError) as error:
                self.errors.append(repr(error))

    def more(self, count: int = 10) -> None:
        """Wait for more of them."""
        wanted = self.good + len(self.errors) + count
        eventually(lambda: self.good + len(self.errors) >= wanted, "more handshakes")

    def stop(self) -> None:
        self._over.set()
        self._thread.join(20)


def test_secrets_come_go_bad_and_are_replaced_and_no_handshake_fails(
    stage: Stage, gateway: ServiceProcess, namespace: Callable[[], str], backend: Backend
) -> None:
    there = namespace()
    (port,) = free_ports(1)
    authority = trustme.CA()
    trust = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())

    def certificate(name: str = "site") -> dict[str, object]:
        return issued_secret(there, name, authority, "web.example.com")

    web = ingress(there, "web", port, "site")
    for one in (*secret_access(there, "site", "late"), certificate()):
        stage.put(one)
    stage.put(service(there, "web", backend.port, address=str(backend.host)))
    own = stage.gateway(
        DATUM_ROUTER_NAMESPACES=there,
        DATUM_ROUTER_BIND="127.0.0.1",
        DATUM_ROUTER_WORKERS="2",
        DATUM_ROUTER_DEBOUNCE_SECS="0.3",
    )
    stage.put(web)
    eventually(lambda: bool(_serial(port, trust)), "the listener")
    load = Handshakes(port, "web.example.com", trust)
    try:
        for _ in range(20):
            before = _serial(port, trust)
            stage.put(certificate())
            eventually(lambda before=before: _serial(port, trust) != before, "the new certificate")  # type: ignore[misc]
        for _ in range(4):
            stage.delete(certificate())
            stage.put(certificate())
            load.more()
        mixed = certificate()
        mixed["data"] = {**mixed["data"], "tls.key": certificate()["data"]["tls.key"]}  # type: ignore[dict-item,index]
        stage.put(mixed)
        bad = ("False", "InvalidCertificateRef")
        eventually(lambda: stage.conditions(web).get("ResolvedRefs") == bad, "the bad pair told")
        assert stage.conditions(web)["Programmed"] == bad
        load.more()
        stage.put(certificate())
        eventually(lambda: stage.conditions(web).get("Programmed") == ("True", "Programmed"), "the good pair")
        stage.put(ingress(there, "web", port, "late"))  # which is not there yet
        eventually(lambda: stage.conditions(web).get("ResolvedRefs") == bad, "the missing one told")
        load.more()
        stage.put(certificate("late"))
        eventually(lambda: stage.conditions(web).get("Programmed") == ("True", "Programmed"), "the late one")
        load.more()
    finally:
        load.stop()
        own.stop()
    assert load.errors == []
    assert load.good > 50


def _serial(port: int, trust: ssl.SSLContext) -> int:
    try:
        return serial_of(port, "web.example.com", trust)
    except OSError:
        return 0


def test_a_port_that_another_process_has_is_told_and_costs_the_others_nothing(
    stage: Stage, gateway: ServiceProcess, namespace: Callable[[], str], backend: Backend
) -> None:
    there = namespace()
    port, more = free_ports(2)
    stage.put(service(there, "web", backend.port, address=str(backend.host)))
    stage.put(ingress(there, "web", port))
    own = stage.gateway(DATUM_ROUTER_NAMESPACES=there, DATUM_ROUTER_BIND="127.0.0.1")
    busy = ingress(there, "busy", more)
    with (
        running_load(port, ["/"], rate=100, host="web.example.com") as load,
        socket.create_server(("0.0.0.0", more)) as taken,
    ):
        stage.put(busy)
        told = ("False", "PortUnavailable")
        eventually(lambda: stage.conditions(busy).get("Programmed") == told, "the port told")
        page = own.page("/readyz")
        assert isinstance(page, dict)
        assert page["ready"] is True
        taken.close()
        eventually(lambda: stage.conditions(busy).get("Programmed") == ("True", "Programmed"), "the port had", 30.0)
        stage.delete(busy)
        asked_until(load)
    own.stop()
    assert load.bad == 0, (load.statuses, load.errors[:3])
