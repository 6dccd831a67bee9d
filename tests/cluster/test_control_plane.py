"""The stage itself: what every other test here relies on."""

from __future__ import annotations

from collections.abc import Callable

from tests.cluster.plane import CONTROLLER, REPOSITORY, Plane


def test_kubectl_applies_the_example_and_lists_it_by_category(plane: Plane, namespace: Callable[[], str]) -> None:
    there = namespace()
    example = (REPOSITORY / "manifests/examples/basic-example.yaml").read_text().replace("namespace: default", "")
    assert plane.kubectl("apply", "-f", "-", stdin=example, namespace=there).returncode == 0
    listed = plane.kubectl("get", "datum", "-o", "name", namespace=there)
    assert listed.stdout.split() == [
        "servicebinding.router.datum.net/api-binding",
        "vpcroute.router.datum.net/api-routes",
        "vpcservice.router.datum.net/my-api",
    ]


def test_a_user_without_rights_is_refused(plane: Plane) -> None:
    assert plane.request("GET", "/api/v1/nodes", user=CONTROLLER).status == 403
