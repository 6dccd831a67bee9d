"""A real etcd and kube-apiserver on free ports of loopback, for tests and benchmarks; ended by process id.

`make .run/cluster/.ready` builds both from `tests/tools/cluster/go.mod`. Users are static tokens with the names that
service accounts have, so that the RBAC manifests under test decide what they may do. No controller manager runs: what
it would do (finish the deletion of a namespace, write EndpointSlices) tests do themselves.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import signal
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import trustme

from tests.cluster.plane import (
    ADMIN,
    CONTROLLER,
    DISCOVERY,
    GATEWAY,
    REMOTE_READER,
    REPOSITORY,
    Answer,
    Plane,
    ProgramsMissing,
    ask,
    program,
)
from tests.ports import free_ports

__all__ = [
    "ADMIN",
    "CONTROLLER",
    "DISCOVERY",
    "GATEWAY",
    "REMOTE_READER",
    "REPOSITORY",
    "Answer",
    "ControlPlane",
    "ProgramsMissing",
    "running",
]

START_S = 60.0
"""How long etcd and kube-apiserver may take until they are ready (seconds)."""
STOP_S = 20.0
API_STOP_S = 3.0
"""How long kube-apiserver may take to end (seconds); it would wait a minute for its watchers, then it is killed."""


class ControlPlane(Plane):
    """One etcd and one kube-apiserver, which can be stopped, started again and compacted."""

    def __init__(
        self,
        home: Path,
        *,
        audit: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
        start_patience_s: float = START_S,
    ) -> None:
        """Make it; nothing runs yet.

        Args:
            host: IP address that the API is served at. The lab's are in network namespaces, which `start` is called in.
            port: 0: a free one.
            start_patience_s: How long each of both may take until it is ready.
        """
        self.home = home
        self._host = host
        self._start_patience_s = start_patience_s
        home.mkdir(parents=True, exist_ok=True)
        self.audit_log = home / "audit.jsonl" if audit else None
        self._etcd_port, self._peer_port, free = free_ports(3)
        self.port = port or free
        self._etcd: subprocess.Popen[bytes] | None = None
        self._api: subprocess.Popen[bytes] | None = None
        self._tokens: dict[str, tuple[str, tuple[str, ...]]] = {}
        self.add_user(ADMIN, groups=("system:masters",))
        for account in (CONTROLLER, GATEWAY, DISCOVERY, REMOTE_READER):
            namespace = account.split(":")[2]
            self.add_user(account, groups=("system:serviceaccounts", f"system:serviceaccounts:{namespace}"))
        self._write_certificates()
        self.server = f"https://[{host}]:{self.port}" if ":" in host else f"https://{host}:{self.port}"
        self._trust = ssl.create_default_context(cafile=str(home / "ca.crt"))

    def add_user(self, name: str, *, groups: Sequence[str] = ()) -> None:
        """Make a user with a token of its own; before `start`."""
        self._tokens[name] = (secrets.token_hex(16), tuple(groups))

    def _write_certificates(self) -> None:
        authority = trustme.CA()
        server = authority.issue_cert(self._host, "localhost")
        authority.cert_pem.write_to_path(self.home / "ca.crt")
        server.private_key_pem.write_to_path(self.home / "server.key")
        (self.home / "server.crt").write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
        # Any private key serves to sign the tokens of service accounts.
        trustme.CA(key_type=trustme.KeyType.RSA).private_key_pem.write_to_path(self.home / "sa.key")

    # --- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start both and wait until the API is ready."""
        self.start_etcd()
        self.start_api()

    def start_etcd(self) -> None:
        """Start etcd on the data it had."""
        url = f"http://127.0.0.1:{self._etcd_port}"
        peer = f"http://127.0.0.1:{self._peer_port}"
        command = [
            str(program("etcd")),
            *("--data-dir", str(self.home / "etcd"), "--unsafe-no-fsync", "--log-level", "error"),
            *("--listen-client-urls", url, "--advertise-client-urls", url),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"default={peer}"),
        ]
        self._etcd = self._spawn("etcd", command)
        self._wait_for(f"{url}/health", self._etcd, "etcd")

    def start_api(self) -> None:
        """Start kube-apiserver on the port it always has, and wait until it is ready."""
        tokens = self.home / "tokens.csv"
        tokens.write_text(
            "".join(
                f'{token},{name},{index},"{",".join(groups)}"\n'
                for index, (name, (token, groups)) in enumerate(self._tokens.items())
            )
        )
        command = [
            str(program("kube-apiserver")),
            *("--etcd-servers", f"http://127.0.0.1:{self._etcd_port}"),
            *("--bind-address", self._host, "--advertise-address", self._host, "--secure-port", str(self.port)),
            *("--tls-cert-file", str(self.home / "server.crt")),
            *("--tls-private-key-file", str(self.home / "server.key")),
            *("--token-auth-file", str(tokens), "--authorization-mode", "RBAC"),
            *(
                "--service-cluster-ip-range",
                "fd96::/112" if ":" in self._host else "10.96.0.0/16",  # of the family that the API is served in
                "--service-account-issuer",
                "https://kubernetes.default.svc",
            ),
            *("--service-account-key-file", str(self.home / "sa.key")),
            *("--service-account-signing-key-file", str(self.home / "sa.key")),
            # Its controller does not run here, so no service account would ever have what this plugin looks for.
            *("--disable-admission-plugins", "ServiceAccount"),
            *("--endpoint-reconciler-type", "none", "--v", "0"),
        ]
        if self.audit_log is not None:
            policy = self.home / "audit.yaml"
            policy.write_text("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n")
            command += ["--audit-policy-file", str(policy), "--audit-log-path", str(self.audit_log)]
        self._api = self._spawn("kube-apiserver", command)
        self._wait_for(f"{self.server}/readyz", self._api, "kube-apiserver")

    def _spawn(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.home / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home)

    def _wait_for(self, url: str, process: subprocess.Popen[bytes], name: str) -> None:
        deadline = time.monotonic() + self._start_patience_s
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                context = self._trust if url.startswith("https") else None
                request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.token(ADMIN)}"})
                with urllib.request.urlopen(request, timeout=2, context=context) as answer:
                    if answer.status == 200:
                        return
            time.sleep(0.1)
        log = (self.home / f"{name}.log").read_text(errors="replace")[-2000:]
        patience = f"{self._start_patience_s:g} s"
        raise RuntimeError(f"{name} was not ready at {url} within {patience}; its log ends with:\n{log}")

    def stop_api(self, *, number: signal.Signals = signal.SIGTERM) -> None:
        """End kube-apiserver."""
        _end(self._api, number, API_STOP_S)
        self._api = None

    def pause_api(self) -> None:
        """Stop kube-apiserver as it is: connections stay open and nothing comes."""
        assert self._api is not None
        self._api.send_signal(signal.SIGSTOP)

    def resume_api(self) -> None:
        """Let it go on."""
        assert self._api is not None
        self._api.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End both."""
        if self._api is not None:
            self._api.send_signal(signal.SIGCONT)
        _end(self._api, signal.SIGKILL)  # it would wait a minute for watchers to leave
        _end(self._etcd, signal.SIGTERM)
        self._api = self._etcd = None

    def back_up(self) -> None:
        """Keep what etcd holds now, for `put_back`; both are stopped for it and started again."""
        self._exchange(self.home / "etcd", self.home / "etcd-kept")

    def put_back(self) -> None:
        """Have etcd hold what it held at the last `back_up`, with its versions of then; both are started again."""
        self._exchange(self.home / "etcd-kept", self.home / "etcd")

    def _exchange(self, source: Path, target: Path) -> None:
        self.stop_api(number=signal.SIGKILL)
        _end(self._etcd, signal.SIGTERM)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        self.start()

    def compact(self) -> None:
        """Have etcd forget all history: whoever resumes a watch from before is told 410 Gone."""
        base = f"http://127.0.0.1:{self._etcd_port}/v3/kv"
        status = _post(f"{base}/range", {"key": "AA==", "limit": 1})
        header = status["header"]
        assert isinstance(header, dict)
        _post(f"{base}/compaction", {"revision": header["revision"], "physical": True})

    def save(self, copy: Path) -> None:
        """Copy etcd's data; both are stopped and started again for it."""
        self.stop()
        shutil.copytree(self.home / "etcd", copy)
        self.start()

    def restore(self, copy: Path) -> None:
        """Put etcd's data back to a copy: versions go on from what they were then."""
        self.stop()
        shutil.rmtree(self.home / "etcd")
        shutil.copytree(copy, self.home / "etcd")
        self.start()

    @property
    def pids(self) -> dict[str, int]:
        """Return the process ids of what runs."""
        named = {"etcd": self._etcd, "kube-apiserver": self._api}
        return {name: process.pid for name, process in named.items() if process is not None}

    # --- use -------------------------------------------------------------------------------------------------------

    def token(self, user: str) -> str:
        """Return a user's token."""
        return self._tokens[user][0]

    def kubeconfig(self, user: str = ADMIN, *, namespace: str = "default", server: str | None = None) -> Path:
        """Write the kubeconfig of a user and return its path."""
        path = self.home / f"kubeconfig-{user.rpartition(':')[2]}-{namespace}.json"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "test",
                    "cluster": {"server": server or self.server, "certificate-authority": str(self.home / "ca.crt")},
                }
            ],
            "users": [{"name": user, "user": {"token": self.token(user)}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user, "namespace": namespace}}],
            "current-context": "test",
        }
        path.write_text(json.dumps(config))
        return path

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
        request = urllib.request.Request(
            self.server + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token(user)}", "Content-Type": content_type},
        )
        return ask(request, context=self._trust)


def _post(url: str, body: object) -> dict[str, object]:
    request = urllib.request.Request(url, data=json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: dict[str, object] = json.loads(answer.read())
        return found


def _end(process: subprocess.Popen[bytes] | None, number: signal.Signals, patience_s: float = STOP_S) -> None:
    if process is None or process.poll() is not None:
        return
    process.send_signal(number)
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running(home: Path, *, audit: bool = False) -> Iterator[ControlPlane]:
    """Run a control plane for the length of a block."""
    plane = ControlPlane(home, audit=audit)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()
