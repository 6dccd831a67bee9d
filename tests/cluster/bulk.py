"""Many objects, written fast: for tests and benchmarks of scale."""

from __future__ import annotations

import http.client
import json
import queue
import ssl
import threading
from collections.abc import Iterable, Mapping

from tests.cluster.control_plane import ADMIN, ControlPlane

GROUP_PATH = "/apis/router.datum.net/v1alpha1"


def service(index: int, namespace: str, *, address: str = "10.0.0.1", port: int = 80) -> dict[str, object]:
    """Return a VPCService with one endpoint."""
    return {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCService",
        "metadata": {"name": f"service-{index:05}", "namespace": namespace},
        "spec": {"port": 8080, "endpoints": [{"address": address, "port": port}]},
    }


def route(index: int, namespace: str, target: int, *, answer: str = "") -> dict[str, object]:
    """Return a VPCRoute of a path of its own to a service.

    Args:
        answer: Value of the response header `x-edit`, to tell versions of the route apart from outside.
    """
    filters = []
    if answer:
        change = {"set": [{"name": "x-edit", "value": answer}]}
        filters = [{"type": "ResponseHeaderModifier", "responseHeaderModifier": change}]
    return {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCRoute",
        "metadata": {"name": f"route-{index:05}", "namespace": namespace},
        "spec": {
            "match": {"pathPrefix": f"/r/{index}"},
            "destinations": [{"vpcServiceRef": {"name": f"service-{target:05}"}}],
            **({"filters": filters} if filters else {}),
        },
    }


class Connection:
    """A kept connection to the API server."""

    def __init__(self, plane: ControlPlane, user: str = ADMIN) -> None:
        trust = ssl.create_default_context(cafile=str(plane.home / "ca.crt"))
        self._http = http.client.HTTPSConnection("127.0.0.1", plane.port, timeout=60, context=trust)
        self._headers = {"Authorization": f"Bearer {plane.token(user)}", "Content-Type": "application/json"}

    def request(
        self, method: str, path: str, body: object = None, *, content_type: str = "application/json"
    ) -> tuple[int, bytes]:
        """Ask; return status and body."""
        data = None if body is None else json.dumps(body)
        self._http.request(method, path, data, {**self._headers, "Content-Type": content_type})
        answer = self._http.getresponse()
        return answer.status, answer.read()

    def close(self) -> None:
        """End the connection."""
        self._http.close()


def collection(raw: Mapping[str, object]) -> str:
    """Return the path of the collection that an object of ours belongs to."""
    meta = raw["metadata"]
    assert isinstance(meta, Mapping)
    return f"{GROUP_PATH}/namespaces/{meta['namespace']}/{str(raw['kind']).lower()}s"


def path_of(raw: Mapping[str, object]) -> str:
    """Return the path of an object of ours."""
    meta = raw["metadata"]
    assert isinstance(meta, Mapping)
    return f"{collection(raw)}/{meta['name']}"


def create_all(plane: ControlPlane, objects: Iterable[Mapping[str, object]], *, threads: int = 8) -> None:
    """Create objects on several connections at once."""
    waiting: queue.SimpleQueue[Mapping[str, object]] = queue.SimpleQueue()
    for one in objects:
        waiting.put(one)
    problems: list[str] = []

    def work() -> None:
        connection = Connection(plane)
        while not problems:
            try:
                one = waiting.get_nowait()
            except queue.Empty:
                break
            status, body = connection.request("POST", collection(one), one)
            if status != 201:
                problems.append(f"{path_of(one)}: {status} {body[:300]!r}")
        connection.close()

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if problems:
        raise AssertionError(problems[0])
