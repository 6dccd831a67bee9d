"""A Kubernetes API to test against: what any has, and one that is somebody else's."""

from __future__ import annotations

import abc
import contextlib
import json
import os
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = REPOSITORY / ".run" / "cluster"

ADMIN = "admin"
CONTROLLER = "system:serviceaccount:datum-router:router-controller"
GATEWAY = "system:serviceaccount:datum-router:router-gateway"
DISCOVERY = "system:serviceaccount:datum-router:router-discovery"
REMOTE_READER = "system:serviceaccount:datum-router:router-remote-reader"

EXTERNAL = "DATUM_ROUTER_TEST_KUBECONFIG"
"""Environment variable with the kubeconfig of a cluster to test in, with the rights of an administrator."""


class ProgramsMissing(Exception):
    """Report that etcd, kube-apiserver or kubectl has not been built."""


def program(name: str) -> Path:
    """Return the path of a program that `make test-cluster` builds."""
    path = PROGRAMS / name
    if not os.access(path, os.X_OK):
        raise ProgramsMissing(f"{path} is not there: `make test-cluster` builds it where Go is at hand")
    return path


class Answer(msgspec.Struct, frozen=True):
    """An answer of the API server."""

    status: int
    body: bytes

    def json(self) -> dict[str, object]:
        """Return the body as an object."""
        found: dict[str, object] = json.loads(self.body)
        return found


class Plane(abc.ABC):
    """A Kubernetes API. Users are `ADMIN` and our service accounts."""

    is_external = False
    home: Path

    @abc.abstractmethod
    def kubeconfig(self, user: str = ADMIN, *, namespace: str = "default") -> Path:
        """Write the kubeconfig of a user and return its path."""

    @abc.abstractmethod
    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        user: str = ADMIN,
        content_type: str = "application/json",
    ) -> Answer:
        """Ask the API server without any client library."""

    def kubectl(
        self, *arguments: str, user: str = ADMIN, stdin: str | None = None, namespace: str = "default"
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as a user."""
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.home),
            "KUBECONFIG": str(self.kubeconfig(user, namespace=namespace)),
        }
        return subprocess.run(
            [str(program("kubectl")), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            env=environment,
            check=False,
        )

    def make_namespace(self, name: str, *, labels: Mapping[str, str] | None = None) -> None:
        """Create a namespace if it is not there."""
        answer = self.request("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": dict(labels or {})}})
        assert answer.status in (201, 409), answer.body

    def delete_namespace(self, name: str, resources: Sequence[str]) -> None:
        """Delete a namespace as the namespace controller does: mark it, delete what is in it, finalize it.

        Args:
            resources: Collections below the namespace, such as `apis/router.datum.net/v1alpha1/*/vpcroutes`.
        """
        answer = self.request("DELETE", f"/api/v1/namespaces/{name}")
        assert answer.status in (200, 202), answer.body
        for resource in resources:
            answer = self.request("DELETE", "/" + resource.replace("*", f"namespaces/{name}"))
            assert answer.status == 200, answer.body
        found = self.request("GET", f"/api/v1/namespaces/{name}")
        if found.status == 404:
            return
        body = found.json()
        body["spec"] = {"finalizers": []}
        assert self.request("PUT", f"/api/v1/namespaces/{name}/finalize", body).status == 200


def ask(request: urllib.request.Request, *, context: ssl.SSLContext | None = None) -> Answer:
    """Send a request and return the answer, whatever its status."""
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            return Answer(answer.status, answer.read())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read())


class ExternalPlane(Plane):
    """A cluster that is there already, by its kubeconfig. Its API server is never stopped."""

    is_external = True

    def __init__(self, home: Path, kubeconfig: Path, proxy: str) -> None:
        self.home = home
        self._kubeconfig = kubeconfig
        self._proxy = proxy
        self._tokens: dict[str, str] = {}

    def kubeconfig(self, user: str = ADMIN, *, namespace: str = "default") -> Path:
        """Write the kubeconfig of a user and return its path."""
        shown = self._run("config", "view", "--raw", "--minify", "--flatten", "-o", "json")
        config = json.loads(shown)
        config["contexts"][0]["context"]["namespace"] = namespace
        if user != ADMIN:
            _, _, there, account = user.split(":")
            if user not in self._tokens:
                self._tokens[user] = self._run("create", "token", account, "-n", there, "--duration=1h").strip()
            config["users"][0]["user"] = {"token": self._tokens[user]}
        path = self.home / f"kubeconfig-{user.rpartition(':')[2]}-{namespace}.json"
        path.write_text(json.dumps(config))
        return path

    def _run(self, *arguments: str) -> str:
        command = [str(program("kubectl")), "--kubeconfig", str(self._kubeconfig), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        user: str = ADMIN,
        content_type: str = "application/json",
    ) -> Answer:
        """Ask through `kubectl proxy`; for another user than the administrator, by impersonation."""
        headers = {"Content-Type": content_type}
        if user != ADMIN:
            headers["Impersonate-User"] = user
        data = None if body is None else json.dumps(body).encode()
        return ask(urllib.request.Request(self._proxy + path, method=method, data=data, headers=headers))

    def delete_namespace(self, name: str, resources: Sequence[str]) -> None:
        """Have the cluster delete a namespace with all that is in it."""
        answer = self.request("DELETE", f"/api/v1/namespaces/{name}")
        assert answer.status in (200, 202), answer.body


@contextlib.contextmanager
def external(home: Path, kubeconfig: Path) -> Iterator[ExternalPlane]:
    """Give a cluster that is there already, for the length of a block."""
    command = [str(program("kubectl")), "--kubeconfig", str(kubeconfig), "proxy", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as proxy:
        try:
            assert proxy.stdout is not None
            said = proxy.stdout.readline()  # Starting to serve on 127.0.0.1:PORT
            address = said.split()[-1] if said else ""
            assert address, f"kubectl proxy ended with {proxy.wait()}"
            yield ExternalPlane(home, kubeconfig, f"http://{address}")
        finally:
            proxy.terminate()
