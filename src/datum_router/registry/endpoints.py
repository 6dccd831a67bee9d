"""Endpoint management: every resolver is asked, their answers are joined into one set per service.

Endpoints of equal key are one endpoint: the first resolver (by priority) that names it decides its weight,
priority and place; it serves if any of them says so. A binding with `autoSync: false` keeps the endpoints of its
first resolution until the binding or the service itself changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from datum_router.manifests.meta import ObjectKey
from datum_router.manifests.vpcservice import VPCService
from datum_router.model.endpoint import Endpoint, EndpointKey, make_endpoint, make_locality
from datum_router.plugins.protocols import EndpointResolver, ManifestView, Resolution, ResolveProblem
from datum_router.reasons import Reason

MAX_ENDPOINTS_PER_SERVICE = 10_000
"""More are cut off with a diagnostic: nothing a service of this size needs is lost, and memory stays bounded."""


class StaticResolver:
    """Resolve `spec.endpoints`: members written down in the manifest."""

    __slots__ = ()

    def resolve(self, service: VPCService, view: ManifestView) -> Resolution | None:
        """Return the written endpoints, or None if there are none."""
        spec = service.spec
        if not spec.endpoints:
            return None
        default_port = spec.target_port or spec.port
        locality = make_locality(spec.topology)
        return Resolution(
            endpoints=tuple(
                make_endpoint(
                    item.address,
                    item.port or default_port,
                    weight=item.weight,
                    priority=item.priority,
                    locality=locality,
                    origin="static",
                )
                for item in spec.endpoints
            )
        )


class EndpointRegistry:
    """Ask resolvers and join their answers; remembers nothing but pinned bindings."""

    __slots__ = ("_pinned", "_resolvers")

    def __init__(self, resolvers: Sequence[EndpointResolver]) -> None:
        self._resolvers = tuple(resolvers)
        self._pinned: dict[ObjectKey, tuple[object, Resolution]] = {}

    def resolve(self, service: VPCService, view: ManifestView, *, pin: object | None = None) -> Resolution:
        """Return the joined endpoints of a service.

        Args:
            pin: Not None: keep what was resolved first for an equal `pin` value (bindings without autoSync).
        """
        key = ObjectKey(kind="VPCService", namespace=service.metadata.namespace, name=service.metadata.name)
        if pin is not None:
            before = self._pinned.get(key)
            if before is not None and before[0] == pin:
                return before[1]
        joined = _join([found for one in self._resolvers if (found := _ask(one, service, view)) is not None])
        if pin is not None and joined.endpoints:
            self._pinned[key] = (pin, joined)
        elif pin is None:
            self._pinned.pop(key, None)
        return joined


def _ask(resolver: EndpointResolver, service: VPCService, view: ManifestView) -> Resolution | None:
    """Return a resolver's answer; one that raises costs only its own endpoints, and is named."""
    try:
        return resolver.resolve(service, view)
    except Exception as error:  # noqa: BLE001 - a plugin's fault, whatever it is, must not cost other services
        problem = ResolveProblem(
            path="spec",
            reason=Reason.PLUGIN_FAILED,
            message=f"resolver {type(resolver).__name__} raised {type(error).__name__}: {error}",
            is_reference=False,
        )
        return Resolution(problems=(problem,))


def _join(answers: Sequence[Resolution]) -> Resolution:
    if len(answers) == 1 and len(answers[0].endpoints) <= 1:
        return answers[0]
    endpoints: dict[EndpointKey, Endpoint] = {}
    problems: list[ResolveProblem] = []
    for answer in answers:
        problems += answer.problems
        for endpoint in answer.endpoints:
            before = endpoints.get(endpoint.key)
            if before is None:
                if len(endpoints) < MAX_ENDPOINTS_PER_SERVICE:
                    endpoints[endpoint.key] = endpoint
            elif endpoint.is_serving and not before.is_serving:
                endpoints[endpoint.key] = msgspec.structs.replace(before, is_serving=True)
    return Resolution(endpoints=tuple(endpoints.values()), problems=tuple(problems))
