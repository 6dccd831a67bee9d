"""What every process of ours has: plugins, a source, a log of what is wrong, and pages over HTTP."""

from __future__ import annotations

import inspect
import logging
import socket
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import trio

from datum_router.compiler.diagnostics import Diagnostic, Severity, did_you_mean
from datum_router.errors import ConfigError
from datum_router.plugins.cluster import Cluster
from datum_router.plugins.manager import PluginSet, load_plugins
from datum_router.plugins.protocols import Source
from datum_router.reasons import Reason
from datum_router_runtime.admin import Admin, Page
from datum_router_runtime.settings import Address
from datum_router_runtime.variables import is_tracing

log = logging.getLogger(__name__)

COLLECTION_OBJECTS = 10_000
"""New objects that call for a garbage collection in a process whose objects live long.

With Python's 700 a first configuration of 10,000 routes costs a tenth more. Workers have YOUNG_OBJECTS.
"""

PROBE_PAGES = ("/healthz", "/readyz")
"""What the probes listener answers, with a status and nothing that is known."""
METRICS_PAGES = ("/metrics",)
"""What the metrics listener answers."""

LISTENING = {name: f"{name} listening" for name in ("admin", "probes", "metrics")}
"""What is logged of each listener."""


def default_identity(environ: Mapping[str, str]) -> str:
    """Return what this process is called: the name of its Pod if it has one, else that of the host."""
    return environ.get("POD_NAME") or socket.gethostname()


def load(disabled: Sequence[str], environ: Mapping[str, str]) -> PluginSet:
    """Load all plugins that are installed and not disabled.

    Raises:
        ConfigError: A name that none of them has.
        PluginLoadError: One cannot be loaded.
    """
    trace = (lambda line: log.info("plugin trace", extra={"call": line})) if is_tracing(environ) else None
    return load_plugins(disabled=frozenset(disabled), trace=trace)


def make_source(name: str, config: Mapping[str, str], plugins: PluginSet, disabled: Sequence[str]) -> Source:
    """Create a source.

    Raises:
        ConfigError: No installed plugin offers it, or it refuses its settings; names what would be right.
    """
    spec = plugins.sources.get(name)
    if spec is None:
        raise not_installed("source", name, plugins.sources, disabled)
    return spec.make(config, plugins.kinds)


def make_cluster(name: str, config: Mapping[str, str], plugins: PluginSet, disabled: Sequence[str]) -> Cluster:
    """Create a cluster to write to.

    Raises:
        ConfigError: As for `make_source`.
    """
    spec = plugins.clusters.get(name)
    if spec is None:
        raise not_installed("cluster", name, plugins.clusters, disabled)
    return spec.create(config)


def not_installed(what: str, name: str, known: Iterable[str], disabled: Sequence[str]) -> ConfigError:
    """Return the error for something that no plugin offers: says what is there, and what may have been meant."""
    names = sorted(known)
    message = f"{what} {name!r} is not installed (installed: {', '.join(names) or 'none'})"
    if hint := did_you_mean(name, names):
        message += f"; {hint}"
    elif disabled:
        message += f"; DATUM_ROUTER_DISABLE_PLUGINS leaves out {', '.join(disabled)}"
    return ConfigError(message, reason=Reason.INVALID_VALUE)


class DiagnosticLog:
    """Logs what is newly wrong with manifests, and what no longer is."""

    __slots__ = ("_logged",)

    def __init__(self) -> None:
        self._logged: frozenset[Diagnostic] = frozenset()

    def take(self, diagnostics: Iterable[Diagnostic]) -> None:
        """Take all that is wrong now. O(diagnostics)."""
        found = frozenset(diagnostics)
        for diagnostic in sorted(found - self._logged, key=Diagnostic.render):
            level = logging.ERROR if diagnostic.severity is Severity.ERROR else logging.WARNING
            log.log(level, "manifest diagnostic", extra={"diagnostic": diagnostic.render()})
        for diagnostic in self._logged - found:
            log.info("manifest diagnostic is gone", extra={"diagnostic": diagnostic.render()})
        self._logged = found


# --- pages -----------------------------------------------------------------------------------------------------------


def readiness(reasons: Sequence[str], complaints: Mapping[str, Sequence[Diagnostic]]) -> tuple[int, object]:
    """Return the page `/readyz`: 200 if there are no reasons against it, else those and what sources complain of."""
    if not reasons:
        return 200, {"ready": True}
    told = [one.render() for found in complaints.values() for one in found]
    return 503, {"ready": False, "reasons": [*reasons, *told]}


class Listening(msgspec.Struct, frozen=True, kw_only=True):
    """A listener that is bound, and what it serves."""

    name: str
    address: Address
    server: Admin
    listener: trio.SocketListener

    async def serve(self) -> None:
        """Serve until cancelled."""
        await self.server.serve(self.listener)


async def open_pages(
    pages: Mapping[str, Page], *, admin: Address | None, probes: Address | None, metrics: Address | None
) -> list[Listening]:
    """Bind the listeners that are wanted: all pages on `admin`, and what may be seen from outside on the others.

    Raises:
        ConfigError: An address cannot be bound, or a page is wanted that there is not.
    """
    shown = {name: _status_only(pages[name]) for name in PROBE_PAGES}
    wanted = (
        ("admin", admin, pages),
        ("probes", probes, shown),
        ("metrics", metrics, {name: pages[name] for name in METRICS_PAGES}),
    )
    found: list[Listening] = []
    for name, address, offered in wanted:
        if address is not None:
            listener = await _bind(address, name)
            host, port = listener.socket.getsockname()[:2]
            bound = Address(host=host, port=port)
            log.info(LISTENING[name], extra={"address": str(bound)})
            server = Admin(offered, is_local=name == "admin")
            found.append(Listening(name=name, address=bound, server=server, listener=listener))
    return found


def _status_only(page: Page) -> Page:
    """Return a page that says the status of another one and nothing else."""

    async def answer() -> tuple[int, object]:
        found = page()
        status, _ = await found if inspect.isawaitable(found) else found
        return status, {"ok": status < 400}

    return answer


async def _bind(address: Address, name: str) -> trio.SocketListener:
    try:
        listeners = await trio.open_tcp_listeners(address.port, host=address.host)
    except OSError as error:
        raise ConfigError(
            f"{name}: cannot bind {address}: {error.strerror or error}; stop the other process or choose another port",
            reason=Reason.INVALID_VALUE,
        ) from error
    return listeners[0]
