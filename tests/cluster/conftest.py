"""A control plane for all tests of a run; each test works in namespaces of its own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.control_plane import REPOSITORY, ControlPlane, ProgramsMissing, running

CRDS = REPOSITORY / "manifests" / "crds"

_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(REPOSITORY / "tests" / "cluster"):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Give a running control plane with our CRDs."""
    try:
        with running(tmp_path_factory.mktemp("plane")) as one:
            applied = one.kubectl("apply", "--server-side", "-f", str(CRDS))
            assert applied.returncode == 0, applied.stderr
            established = one.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(CRDS))
            assert established.returncode == 0, established.stderr
            yield one
    except ProgramsMissing as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


@pytest.fixture
def namespace(plane: ControlPlane) -> Callable[[], str]:
    """Give new namespaces."""

    def make() -> str:
        name = f"test-{next(_numbers)}"
        plane.make_namespace(name)
        return name

    return make
