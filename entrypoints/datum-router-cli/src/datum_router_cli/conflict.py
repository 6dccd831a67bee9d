"""Which of all that is said of a directory concerns one request, for `explain`."""

from __future__ import annotations

from collections.abc import Iterable

from datum_router.compiler.diagnostics import Diagnostic, Severity
from datum_router.compiler.edge import listener_name, wanted_listeners
from datum_router.manifests.meta import ObjectKey
from datum_router.manifests.vpcingress import VPCIngress
from datum_router.model.listener import Listener
from datum_router.reasons import Reason
from datum_router.registry.store import StoreView
from datum_router.routing.host import canonical_hostname, host_matches

CONFLICTS = frozenset({Reason.CONFLICTED, Reason.HOSTNAME_CONFLICT})
KEPT_OUT = frozenset({Reason.NOT_ALLOWED_BY_LISTENERS})
"""Why a rule is not among those of a listener: nothing else tells of it if no other rule takes the request."""


def manifest_of(route: str) -> ObjectKey:
    """Return the manifest that rules of `route` (`Rule.route`) come from."""
    kind = "VPCIngress" if route.startswith("ingress:") else "VPCRoute"
    namespace, _, name = route.removeprefix("ingress:").partition("/")
    return ObjectKey(kind=kind, namespace=namespace, name=name)


def concerning(
    diagnostics: Iterable[Diagnostic], view: StoreView, *, route: str | None, listener: Listener | None, host: str
) -> list[Diagnostic]:
    """Return all errors, and the conflicts of what the request has to do with: something older than that applies.

    Args:
        route: Of the rule that takes the request; None if none does: then also what keeps routes away from listeners.
        listener: Where it comes in. VPCIngresses that serve `host` there are concerned.
    """
    concerned = {str(key) for key in _ingresses(view, listener, host)}
    if route is not None:
        concerned.add(str(manifest_of(route)))
    return [
        one
        for one in diagnostics
        if one.severity is Severity.ERROR
        or (one.reason in CONFLICTS and one.object in concerned)
        or (one.reason in KEPT_OUT and route is None)
    ]


def _ingresses(view: StoreView, listener: Listener | None, host: str) -> list[ObjectKey]:
    """Return the VPCIngresses that ask for a host on a listener."""
    if listener is None:
        return []
    return [
        ObjectKey(kind="VPCIngress", namespace=one.metadata.namespace, name=one.metadata.name)
        for one in view.list("VPCIngress")
        if isinstance(one, VPCIngress)
        and any(host_matches(canonical_hostname(name), host) for name in (one.spec.host, *one.spec.hosts))
        and any(listener_name(item) == listener.name for item in wanted_listeners(one))
    ]
