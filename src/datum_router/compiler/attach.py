"""VPCIngresses as VPCRoutes see them: which route is served where, and why one is not. Pure.

What compiling and statuses have in common: both ask `join`, so that they say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from datum_router.compiler.diagnostics import Severity, did_you_mean
from datum_router.compiler.edge import Allowed
from datum_router.compiler.refs import Finding
from datum_router.manifests.meta import ObjectKey, key_of
from datum_router.manifests.parts import Timeouts
from datum_router.manifests.vpcroute import ParentRef, VPCRoute
from datum_router.model.listener import Listener, ListenerMode, TlsBinding
from datum_router.model.route import Rule
from datum_router.reasons import Reason


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """One VPCIngress as routes see it.

    Attributes:
        sections: Section name, port and listener name of each listener that is opened for it.
        allowed: Whose routes it serves; None = everybody's.
        timeouts: Of routes that state none.
        claims: VPCRoutes (namespace, name) that it names itself.
        is_elsewhere: Its `gatewaySelector` does not select this gateway: nothing of it is served here.
    """

    key: ObjectKey
    hostnames: tuple[str, ...]
    sections: tuple[tuple[str, int, str], ...]
    allowed: Allowed | None = None
    timeouts: Timeouts | None = None
    claims: tuple[tuple[str, str], ...] = ()
    is_elsewhere: bool = False


class IngressScope(msgspec.Struct, frozen=True, kw_only=True):
    """What all VPCIngresses together offer to routes.

    Attributes:
        own: The listener of the gateway's own certificate, if it has one: in force unless a VPCIngress opens the port.
        secrets: Of each VPCIngress with a certificate the name of its Secret and what was read there.
    """

    ingresses: tuple[Attached, ...] = ()
    listeners: tuple[Listener, ...] = ()
    rules: tuple[Rule, ...] = ()
    findings: tuple[Finding, ...] = ()
    own: Listener | None = None
    secrets: Mapping[ObjectKey, tuple[str, TlsBinding]] = {}
    is_unbound: bool = False

    def unbound(self) -> IngressScope:
        """Return the scope for one listener that serves everything: no rule is bound to a listener."""
        return msgspec.structs.replace(
            self,
            is_unbound=True,
            listeners=(),
            rules=tuple(msgspec.structs.replace(rule, listeners=()) for rule in self.rules),
        )

    @property
    def own_listeners(self) -> tuple[Listener, ...]:
        """Return the listener of the gateway's own certificate, if that is in force."""
        own = self.own
        return () if own is None or any(own.port == other.port for other in self.listeners) else (own,)

    @property
    def restrictions(self) -> tuple[tuple[str, tuple[Allowed, ...]], ...]:
        """Return, if any VPCIngress does not serve everybody's routes, all listeners with what is allowed there.

        What routes without `parentRefs` depend on.
        """
        by_name: dict[str, list[Allowed]] = {one.name: [] for one in (*self.listeners, *self.own_listeners)}
        for item in self.ingresses:
            for _, _, name in item.sections:
                if item.allowed is not None and name in by_name:
                    by_name[name].append(item.allowed)
        return tuple((name, tuple(found)) for name, found in by_name.items()) if any(by_name.values()) else ()

    def are_streams(self, listeners: Sequence[str]) -> bool:
        """Tell whether these listeners, of a route, carry bytes only; False for none, which means all."""
        modes = {listener.name: listener.mode for listener in self.listeners}
        found = [modes.get(name, ListenerMode.HTTP) for name in listeners]
        return bool(found) and all(mode is not ListenerMode.HTTP for mode in found)

    def timeouts_for(self, route: VPCRoute) -> Timeouts | None:
        """Return the defaults of the first of a route's parents that has some."""
        table = {(item.key.namespace, item.key.name): item for item in self.ingresses}
        parents = (table.get((ref.namespace or route.metadata.namespace, ref.name)) for ref in route.spec.parent_refs)
        return next((one.timeouts for one in parents if one is not None and one.timeouts is not None), None)

    def attach(self, route: VPCRoute, findings: list[Finding]) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
        """Return (host names, listener names, whether the route is attached anywhere).

        Without `parentRefs` a route is served by every gateway: on each listener that is open to its namespace, with
        its own host names. With them it is served on the named ingresses' listeners, for those of its host names that
        the ingress has too, and by ingresses whose rules name it.
        """
        own = tuple([name.lower() for name in route.spec.hostnames])
        refs = route.spec.parent_refs
        key = key_of("VPCRoute", route.metadata)
        if not refs:
            return self._attach_to_all(own, key, findings)
        hosts: dict[str, None] = {}
        listeners: dict[str, None] = {}
        table = {(item.key.namespace, item.key.name): item for item in self.ingresses}
        claims = [
            ParentRef(namespace=item.key.namespace, name=item.key.name)
            for item in self.ingresses
            if (key.namespace, key.name) in item.claims
        ]
        for index, ref in enumerate((*refs, *claims)):
            where = (ref.namespace or key.namespace, ref.name)
            parent = table.get(where)
            if parent is not None and parent.is_elsewhere:
                continue  # other gateways serve it: nothing is wrong
            joined = join(ref, parent, own, namespace=key.namespace, path=f"spec.parentRefs[{index}]")
            if joined.reason is not None:
                if index < len(refs):  # else the VPCIngress is told
                    findings.append(_not_joined(key, ref, joined, table, where))
                continue
            hosts.update(dict.fromkeys(joined.hostnames))
            listeners.update(dict.fromkeys(joined.listeners))
        if not listeners:
            return (), (), False
        return tuple(hosts), () if self.is_unbound else tuple(listeners), True

    def _attach_to_all(
        self, own: tuple[str, ...], key: ObjectKey, findings: list[Finding]
    ) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
        restrictions = () if self.is_unbound else self.restrictions
        taken = tuple(name for name, all_of in restrictions if all(one.admits(key.namespace) for one in all_of))
        if len(taken) == len(restrictions):
            return own, (), True
        closed = ", ".join(name for name, _ in restrictions if name not in taken)
        findings.append(
            Finding(
                key=key,
                path="spec.parentRefs",
                reason=Reason.NOT_ALLOWED_BY_LISTENERS,
                message=f"not served on {closed}: a VPCIngress there does not take routes of namespace {key.namespace}",
                hint="name the VPCIngress that it is for in parentRefs",
                severity=Severity.INFO if taken else Severity.WARNING,
            )
        )
        return own, taken, bool(taken)


def _not_joined(
    key: ObjectKey,
    ref: ParentRef,
    joined: Joined,
    table: Mapping[tuple[str, str], Attached],
    where: tuple[str, str],
) -> Finding:
    is_there = where in table
    return Finding(
        key=key,
        path=joined.path,
        reason=joined.reason or Reason.INVALID_VALUE,
        message=joined.message,
        hint=joined.hint or ("" if is_there else did_you_mean(ref.name, [one for at, one in table if at == where[0]])),
        severity=Severity.ERROR if is_there else Severity.WARNING,
        is_reference=not is_there,
    )


class Joined(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A route at one of its parents.

    Attributes:
        hostnames, listeners: What it is served for and on there.
        reason, message, path: Why it is not, and what is to be mended; None and empty if it is.
    """

    hostnames: tuple[str, ...] = ()
    listeners: tuple[str, ...] = ()
    reason: Reason | None = None
    message: str = ""
    path: str = ""
    hint: str = ""


def join(ref: ParentRef, parent: Attached | None, own: tuple[str, ...], *, namespace: str, path: str = "") -> Joined:
    """Return what comes of a `parentRefs` item.

    Args:
        parent: The VPCIngress that it names, None if that is not there.
        own: The route's host names, lower case.
        namespace: The route's.
        path: Of the item in the route.
    """
    name = f"vpcingress {ref.namespace or namespace}/{ref.name}"
    if parent is None:
        return Joined(reason=Reason.VPC_INGRESS_NOT_FOUND, message=f"{name} is not there", path=f"{path}.name")
    if parent.is_elsewhere:
        message = f"{name} is for other gateways (gatewaySelector)"
        return Joined(reason=Reason.VPC_INGRESS_NOT_FOUND, message=message, path=path)
    claimed = any(at == namespace for at, _ in parent.claims)  # it has asked for a route of that namespace itself
    if parent.allowed is not None and not claimed and not parent.allowed.admits(namespace):
        return Joined(
            reason=Reason.NOT_ALLOWED_BY_LISTENERS,
            message=f"{name} does not take routes of namespace {namespace}",
            path=f"{path}.name",
            hint="its spec.allowedRoutes says which",
        )
    listeners = [
        listener
        for section, port, listener in parent.sections
        if (not ref.section_name or section == ref.section_name) and (not ref.port or port == ref.port)
    ]
    if not listeners:
        known = ", ".join(f"{section} ({port})" for section, port, _ in parent.sections) or "none"
        message = f"{name} has no such listener (its listeners: {known})"
        return Joined(reason=Reason.VPC_INGRESS_NOT_FOUND, message=message, path=path)
    hostnames = intersect(own, parent.hostnames)
    if not hostnames and own:
        message = f"none of {', '.join(own)} is a host of {name} ({', '.join(parent.hostnames)})"
        return Joined(reason=Reason.INVALID_VALUE, message=message, path="spec.hostnames")
    return Joined(hostnames=hostnames, listeners=tuple(listeners))


def intersect(route: Sequence[str], ingress: Sequence[str]) -> tuple[str, ...]:
    """Return the host names that both sides have; an empty side has all (Gateway API host name intersection)."""
    if not route:
        return tuple(ingress)
    if not ingress:
        return tuple(route)
    found: dict[str, None] = {}
    for one in route:
        for other in ingress:
            if one == other or _covers(other, one):
                found[one] = None
            elif _covers(one, other):
                found[other] = None
    return tuple(found)


def _covers(wildcard: str, name: str) -> bool:
    return wildcard.startswith("*.") and name.endswith(wildcard[1:]) and name != wildcard
