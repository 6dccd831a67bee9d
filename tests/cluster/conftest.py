"""A control plane for all tests of a run; each test works in namespaces of its own."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tests.cluster.control_plane import ControlPlane, running
from tests.cluster.plane import EXTERNAL, REPOSITORY, Plane, ProgramsMissing, external

CRDS = REPOSITORY / "manifests" / "crds"

RUN = f"test-{secrets.token_hex(3)}"
"""What the namespaces of this run begin with: a cluster that was there before may have some of other runs."""

_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(REPOSITORY / "tests" / "cluster"):
            item.add_marker(pytest.mark.cluster)


def _install_crds(one: Plane) -> None:
    applied = one.kubectl("apply", "--server-side", "-f", str(CRDS))
    assert applied.returncode == 0, applied.stderr
    established = one.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(CRDS))
    assert established.returncode == 0, established.stderr


def _missing(error: ProgramsMissing) -> NoReturn:
    if os.environ.get("CI") == "true":
        raise error
    pytest.skip(str(error))


@pytest.fixture(scope="session")
def own_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Give a running control plane of ours with our CRDs: one that may be stopped, and whose users we made."""
    try:
        with running(tmp_path_factory.mktemp("plane")) as one:
            _install_crds(one)
            yield one
    except ProgramsMissing as error:
        _missing(error)


@pytest.fixture(scope="session")
def plane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """Give a Kubernetes API with our CRDs: the one that DATUM_ROUTER_TEST_KUBECONFIG names, or `own_plane`."""
    given = os.environ.get(EXTERNAL, "")
    if not given:
        yield request.getfixturevalue("own_plane")
        return
    try:
        with external(tmp_path_factory.mktemp("external"), Path(given)) as one:
            _install_crds(one)
            yield one
    except ProgramsMissing as error:
        _missing(error)


@pytest.fixture
def namespace(plane: Plane) -> Iterator[Callable[[], str]]:
    """Give new namespaces; what our kinds hold in them is deleted at the end, since a gateway serves all there is."""
    made: list[str] = []

    def make() -> str:
        name = f"{RUN}-{next(_numbers)}"
        plane.make_namespace(name)
        made.append(name)
        return name

    yield make
    for name in made:
        for plural in ("vpcroutes", "vpcservices", "servicebindings", "vpcingresses", "vpcegresses"):
            plane.request("DELETE", f"/apis/router.datum.net/v1alpha1/namespaces/{name}/{plural}")
