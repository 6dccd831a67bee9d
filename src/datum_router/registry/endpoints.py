"""Endpoint management: every resolver is asked, their answers are joined into one set per service.

Endpoints of equal key are one endpoint: the first resolver (by priority) that names it decides its weight,
priority, place and origin; it serves if any of them says so.

What an object contributes may be held (a ServiceBinding without `autoSync`): the endpoints that were there when the
set had settled are kept until the object says otherwise. They are kept in memory, and in the object's status if a
controller writes it, from which every process takes them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container, Mapping, Sequence

import msgspec

from datum_router.compiler.places import service_place
from datum_router.manifests.meta import ObjectKey
from datum_router.manifests.vpcservice import VPCService
from datum_router.model.endpoint import Endpoint, EndpointKey, endpoint_key, make_endpoint
from datum_router.plugins.protocols import (
    Contribution,
    EndpointResolver,
    ManifestView,
    Resolution,
    ResolveProblem,
    VpcNetwork,
)
from datum_router.reasons import Reason
from datum_router.registry.bucket import Name

MAX_NAMED_VPCS = 3
"""VPCs that a message about an address in several names."""
MAX_ENDPOINTS_PER_SERVICE = 10_000
"""More are cut off with a diagnostic: nothing a service of this size needs is lost, and memory stays bounded."""


STATIC = "static"
"""Origin of endpoints that a VPCService writes down."""


class StaticResolver:
    """Resolve `spec.endpoints`: members written down in the manifest."""

    __slots__ = ()

    def resolve(self, service: VPCService, view: ManifestView) -> Resolution | None:
        """Return the written endpoints, or None if there are none."""
        spec = service.spec
        if not spec.endpoints:
            return None
        default_port = spec.target_port or spec.port
        place = service_place(service, view)
        return Resolution(
            endpoints=tuple(
                make_endpoint(
                    item.address,
                    item.port or default_port,
                    weight=item.weight,
                    priority=item.priority,
                    locality=place.of_endpoint(item.location_ref),
                    origin=STATIC,
                )
                for item in spec.endpoints
            )
        )


class EndpointRegistry:
    """Ask resolvers and join their answers; remembers nothing but held endpoints."""

    __slots__ = ("_held", "_resolvers")

    def __init__(self, resolvers: Sequence[EndpointResolver]) -> None:
        self._resolvers = tuple(resolvers)
        self._held: dict[Name, dict[ObjectKey, _Held]] = {}

    def resolve(self, service: VPCService, view: ManifestView) -> Resolution:
        """Return the joined endpoints of a service.

        `contributions` are what was used of each object, `endpoints` and `problems` those of all together.
        """
        name = (service.metadata.namespace, service.metadata.name)
        answers = [found for one in self._resolvers if (found := _ask(one, service, view)) is not None]
        if any(answer.contributions for answer in answers):
            before = self._held.pop(name, {})
            held: dict[ObjectKey, _Held] = {}
            answers = [_with_held(answer, before, held) for answer in answers]
            if held:
                self._held[name] = held
        elif self._held:
            self._held.pop(name, None)
        return _join(answers)

    def retain(self, names: Container[Name]) -> None:
        """Forget what is held for services that are not among these (namespace and name)."""
        for name in [name for name in self._held if name not in names]:
            del self._held[name]

    def forget(self, name: Name) -> None:
        """Forget what is held for a service that is gone."""
        self._held.pop(name, None)


class _Held(msgspec.Struct, frozen=True, gc=False):
    """Endpoints that were taken once."""

    token: object
    endpoints: tuple[Endpoint, ...]


def _with_held(answer: Resolution, before: Mapping[ObjectKey, _Held], held: dict[ObjectKey, _Held]) -> Resolution:
    """Return the answer with endpoints that are held in place of those that were found; fill in `held`."""
    contributions: list[Contribution] = []
    for found in answer.contributions:
        hold = found.hold
        kept = None if hold is None else before.get(found.object)
        if hold is None:
            contributions.append(found)
            continue
        if hold.recorded:
            endpoints = hold.recorded
        elif kept is not None and kept.token == hold.token:
            endpoints = kept.endpoints
        elif hold.is_settled:
            endpoints = tuple(endpoint for endpoint in found.endpoints if endpoint.is_serving)
        else:
            contributions.append(found)
            continue
        held[found.object] = _Held(hold.token, endpoints)
        contributions.append(msgspec.structs.replace(found, endpoints=endpoints, shortfalls=(), is_held=True))
    return msgspec.structs.replace(answer, contributions=tuple(contributions))


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
    if len(answers) == 1 and len(answers[0].endpoints) <= 1 and not answers[0].contributions:
        return answers[0]
    networks = [one for answer in answers for one in answer.networks]
    if networks:
        answers = [_in_vpc(answer, networks) for answer in answers]
    joined = _Joined()
    problems: list[ResolveProblem] = []
    contributions: list[Contribution] = []
    for answer in answers:
        problems += answer.problems
        joined.add(answer.endpoints)
        for contribution in answer.contributions:
            problems += contribution.shortfalls
            joined.add(contribution.endpoints)
        contributions += answer.contributions
    if joined.left_out:
        problems.append(
            ResolveProblem(
                path="spec",
                reason=Reason.INVALID_VALUE,
                message=f"found {len(joined.endpoints) + len(joined.left_out)} endpoints, expected at most "
                f"{MAX_ENDPOINTS_PER_SERVICE}; the rest is left out",
                is_reference=False,
            )
        )
    return Resolution(
        endpoints=tuple(joined.endpoints.values()), problems=tuple(problems), contributions=tuple(contributions)
    )


def _in_vpc(answer: Resolution, networks: Sequence[VpcNetwork]) -> Resolution:
    """Return the answer with the VPC of every endpoint that the service writes down and that a network holds.

    The narrowest network decides, as in routing. Where that is one of several VPCs, which may have equal addresses,
    nobody can tell whose machine is meant: the endpoint is left out rather than sent into either.
    """
    if not any(one.origin == STATIC and not one.vpc for one in answer.endpoints):
        return answer
    table = _by_length(networks)
    placed: list[Endpoint] = []
    problems = list(answer.problems)
    for one in answer.endpoints:
        found = _narrowest(table, one.address) if one.origin == STATIC and not one.vpc else []
        if len(found) > 1:
            problems.append(_ambiguous(one, found))
        else:
            placed.append(_through(one, found[0]) if found else one)
    return msgspec.structs.replace(answer, endpoints=tuple(placed), problems=tuple(problems))


_Table = dict[tuple[int, int], dict[int, list[str]]]
"""IP version and host bits, widest networks last -> leading bits -> VPCs."""


def _by_length(networks: Sequence[VpcNetwork]) -> _Table:
    found: _Table = {}
    for one in networks:
        network = ipaddress.ip_network(one.network, strict=False)
        host_bits = network.max_prefixlen - network.prefixlen
        vpcs = found.setdefault((network.version, host_bits), {}).setdefault(
            int(network.network_address) >> host_bits, []
        )
        if one.vpc not in vpcs:
            vpcs.append(one.vpc)
    return dict(sorted(found.items()))


def _narrowest(table: _Table, text: str) -> list[str]:
    """Return the VPCs of the narrowest network that holds an address; O(lengths), however many networks there are."""
    address = ipaddress.ip_address(text)
    for (version, host_bits), networks in table.items():
        if version == address.version and (vpcs := networks.get(int(address) >> host_bits)):
            return vpcs
    return []


def _ambiguous(one: Endpoint, vpcs: Sequence[str]) -> ResolveProblem:
    return ResolveProblem(
        path="spec.endpoints",
        reason=Reason.INVALID_ADDRESS,
        message=f"found {one.address}, which is in networks of the VPCs {' and '.join(sorted(vpcs)[:MAX_NAMED_VPCS])}, "
        "expected an address of one of them: the endpoint is left out",
        hint="write one VPCService for each VPC",
        is_reference=False,
    )


def _through(one: Endpoint, vpc: str) -> Endpoint:
    return msgspec.structs.replace(one, key=endpoint_key(one.address, one.port, vpc), vpc=vpc)


class _Joined:
    """Endpoints by key, in order of arrival."""

    __slots__ = ("endpoints", "left_out")

    def __init__(self) -> None:
        self.endpoints: dict[EndpointKey, Endpoint] = {}
        self.left_out: set[EndpointKey] = set()

    def add(self, found: Sequence[Endpoint]) -> None:
        """Take endpoints that are not there yet, up to the limit."""
        for endpoint in found:
            before = self.endpoints.get(endpoint.key)
            if before is not None:
                if endpoint.is_serving and not before.is_serving:
                    self.endpoints[endpoint.key] = msgspec.structs.replace(before, is_serving=True)
            elif len(self.endpoints) < MAX_ENDPOINTS_PER_SERVICE:
                self.endpoints[endpoint.key] = endpoint
            else:
                self.left_out.add(endpoint.key)
