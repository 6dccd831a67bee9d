"""Writing to a real API server: what every cluster must hold to, rights, a server that is away, one that hangs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import trio

from datum_router.manifests.meta import GroupVersionKind, ObjectKey
from datum_router.testing.cluster import ClusterConformance, SeenEvent
from datum_router.testing.cluster.conformance import Body
from datum_router_kubernetes.cluster import make_cluster
from tests.cluster.control_plane import ControlPlane


class PlaneStage:
    """The world around a cluster under test: the control plane, as its administrator sees it."""

    def __init__(self, plane: ControlPlane, namespace: Callable[[], str]) -> None:
        self._plane = plane
        self._namespace = namespace

    def new_namespace(self) -> str:
        return self._namespace()

    def remove(self, gvk: GroupVersionKind, plural: str, key: ObjectKey) -> None:
        path = f"/apis/{gvk.api_version}/namespaces/{key.namespace}/{plural}/{key.name}"
        answer = self._plane.request("DELETE", path)
        assert answer.status == 200, answer.body

    def events(self, namespace: str) -> Sequence[SeenEvent]:
        answer = self._plane.request("GET", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")
        items = answer.json()["items"]
        assert isinstance(items, list)
        return [
            SeenEvent(
                name=item["regarding"]["name"],
                type=item["type"],
                reason=item["reason"],
                note=item["note"],
                count=(item.get("series") or {"count": 1})["count"],
            )
            for item in items
        ]


class TestKubernetesCluster(ClusterConformance):
    @pytest.fixture(autouse=True)
    def _given(self, plane: ControlPlane, namespace: Callable[[], str]) -> None:
        self.plane = plane
        self.stage = PlaneStage(plane, namespace)

    def run(self, body: Body) -> None:
        cluster = make_cluster({"kubeconfig": str(self.plane.kubeconfig()), "role": "controller"})

        async def main() -> None:
            with trio.fail_after(60):
                await body(cluster, self.stage)

        trio.run(main)
