"""The clouds' clusters: an etcd and a kube-apiserver in each cloud's namespace, and what is put into them by kubectl.

What the lab does in the place of others: it writes the status of VPCs and VPCAttachments as Galactic's operator does,
and it makes the CRDs of kinds that are not ours, as small as our tests have them.
"""

from __future__ import annotations

import contextlib
import functools
import json
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from pathlib import Path
from typing import Any

import yaml

from lab.network import LabError
from lab.plan import API_PORT, CLOUDS, Node
from lab.traffic import inside, wait_for
from tests.cluster.control_plane import ControlPlane
from tests.cluster.foreign import own_crds
from tests.cluster.plane import ADMIN, REMOTE_READER, REPOSITORY, ProgramsMissing, program

SYSTEM = "datum-router"
"""Namespace that the product is installed in."""
MANIFESTS = REPOSITORY / "lab" / "manifests"
PRODUCT = tuple(
    REPOSITORY / "manifests" / part for part in ("crds", "rbac/rbac.yaml", "examples/remote-reader-access.yaml")
)
"""What a user installs in every cluster."""
PROGRAMS = ("etcd", "kube-apiserver", "kubectl")
GALACTIC_KINDS = frozenset({"VPC", "VPCAttachment"})
START_PATIENCE_S = 180.0
"""How long an etcd or an API server may take, while six of them start at once (seconds)."""
ABORT_PAUSE_S = 0.2
APPLY_PATIENCE_S = 60.0
"""How long a new kind may take until the API server serves it (seconds)."""


def programs_missing() -> str:
    """Return what of etcd, kube-apiserver and kubectl is not there and how to get it, empty if all are."""
    missing = []
    for name in PROGRAMS:
        try:
            program(name)
        except ProgramsMissing:
            missing.append(name)
    if not missing:
        return ""
    return f"{_listed(missing)} in .run/cluster: install Go, and `make .run/cluster` builds {_listed(PROGRAMS)}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


class Cluster:
    """The cluster of one cloud.

    Attributes:
        node: Where its API server is.
    """

    def __init__(self, node: Node, home: Path) -> None:
        self.node = node
        # In there, so that the free ports that etcd gets are looked for where they are used.
        self._plane = inside(
            node.name,
            lambda: ControlPlane(
                home / f"cluster-{node.name}", host=node.address, port=API_PORT, start_patience_s=START_PATIENCE_S
            ),
        )

    def start(self) -> None:
        """Start etcd and the API server in the cloud's namespace, and wait until it answers.

        Raises:
            LabError: It does not; holds the end of a log.
        """
        inside(self.node.name, self._plane.start)

    def stop(self) -> None:
        """End both."""
        self._plane.stop()

    def kubeconfig(self, user: str) -> Path:
        """Write the kubeconfig of an account, in the product's namespace, and return its path."""
        return self._plane.kubeconfig(user, namespace=SYSTEM)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl in the cloud's namespace as an administrator, and return what it printed.

        Raises:
            LabError: It failed; holds the command and its error.
        """
        done = inside(self.node.name, lambda: self._plane.kubectl(*arguments, stdin=stdin))
        if done.returncode:
            raise LabError(f"{self.node.title}: kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, path: str) -> Mapping[str, object]:
        """Return what the API has at a path.

        Raises:
            LabError: It is not there.
        """
        answer = inside(self.node.name, lambda: self._plane.request("GET", path))
        if answer.status != 200:
            raise LabError(f"{self.node.title}: GET {path}: {answer.status} {answer.body[:500]!r}")
        return answer.json()

    def kubectl_command(self) -> list[str]:
        """Return what runs kubectl as an administrator, in the cloud's namespace."""
        return [str(program("kubectl")), "--kubeconfig", str(self._plane.kubeconfig(ADMIN))]

    def watch_command(self, resource: str, namespace: str) -> list[str]:
        """Return what prints every event of a collection as JSON, in the cloud's namespace."""
        what = ["get", resource, "--namespace", namespace, "--watch", "--output-watch-events", "--output=json"]
        return [*self.kubectl_command(), *what]

    def put(self, items: Sequence[Mapping[str, object]], *options: str) -> None:
        """Apply objects."""
        said = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        self.kubectl("apply", "--server-side", *options, "-f", "-", stdin=said)

    def install(self) -> None:
        """Install the product as a user does: CRDs, roles, and an account that others read this cluster with."""
        self.kubectl("apply", "--server-side", *_files(PRODUCT))
        self.put(own_crds())
        self.kubectl("wait", "--for=condition=Established", f"--timeout={APPLY_PATIENCE_S:g}s", "crd", "--all")

    def apply(self, directory: Path) -> None:
        """Apply manifests, and what Galactic's operator would write of them.

        Raises:
            LabError: They were refused, or a kind was still not served after `APPLY_PATIENCE_S`.
        """
        refused: list[LabError] = []

        def is_applied() -> bool:
            try:
                self.kubectl("apply", "--server-side", *_files([directory]))
            except LabError as error:
                if "no matches for kind" not in str(error):  # which a CRD that was established just now still gives
                    raise
                refused[:] = [error]
                return False
            return True

        try:
            wait_for(f"{directory} is applied", is_applied, timeout_s=APPLY_PATIENCE_S)
        except LabError as error:
            raise refused[0] if refused else error from None
        written = [one for one in documents(directory) if one["kind"] in GALACTIC_KINDS]
        if written:
            self.put(written, "--subresource=status", "--field-manager=galactic")

    def kubeconfig_for_others(self) -> str:
        """Return the kubeconfig that other clusters' discovery reads this one with, all data inline."""
        config = json.loads(self._plane.kubeconfig(REMOTE_READER).read_text())
        cluster = config["clusters"][0]["cluster"]
        authority = Path(cluster.pop("certificate-authority")).read_bytes()
        cluster["certificate-authority-data"] = b64encode(authority).decode()
        return json.dumps(config)

    def join(self, others: Sequence[Cluster]) -> None:
        """Have this cluster's discovery read others: a Secret with a kubeconfig for each."""
        secrets = [
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {
                    "name": one.node.name,
                    "namespace": SYSTEM,
                    "labels": {"router.datum.net/remote-cluster": "true"},
                },
                "data": {"kubeconfig": b64encode(one.kubeconfig_for_others().encode()).decode()},
            }
            for one in others
        ]
        self.put(secrets)


def documents(directory: Path) -> list[dict[str, Any]]:
    """Return the objects of all manifests below a directory."""
    return [
        one
        for path in sorted(directory.glob("*.yaml"))
        for one in yaml.safe_load_all(path.read_text())
        if one is not None
    ]


def _files(paths: Sequence[Path]) -> list[str]:
    return [word for path in paths for word in ("-f", str(path))]


def together(work: Sequence[Callable[[], object]], *, abort: Callable[[], object]) -> None:
    """Do several things at once, and wait for all of them.

    Args:
        abort: Makes them end early if one fails or this is interrupted; called until none is left, since one may just
            have been about to start something.

    Raises:
        LabError: Or whatever else the first one that failed raised.
    """
    with ThreadPoolExecutor(len(work)) as pool:
        doing = [pool.submit(one) for one in work]
        try:
            for one in as_completed(doing):
                one.result()
        except BaseException:
            while not all(one.done() for one in doing):
                abort()
                wait(doing, timeout=ABORT_PAUSE_S)
            raise


@contextlib.contextmanager
def running(home: Path) -> Iterator[Mapping[str, Cluster]]:
    """Run a cluster in each cloud, with the product's CRDs and roles; give them by the names of their nodes."""
    clusters = {node.name: Cluster(node, home) for node in CLOUDS}

    def prepare(one: Cluster) -> None:
        one.start()
        one.install()

    def stop() -> None:
        for one in clusters.values():
            one.stop()

    try:
        together([functools.partial(prepare, one) for one in clusters.values()], abort=stop)
        yield clusters
    finally:
        stop()
