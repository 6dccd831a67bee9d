"""From ServiceBindings to endpoints: Service -> port -> EndpointSlices -> addresses. Pure, no I/O.

Which endpoints serve follows kube-proxy: those that are ready; if none is, those that are terminating and still
serve. `ready: null` counts as true, unless the endpoint is terminating. With `publishNotReadyAddresses` every endpoint
serves that is not terminating, and if there is none, those that are. Endpoints that do not serve are given all the
same, marked as such, so that a status can list them and requests that are under way know them.

An endpoint that several slices list (during their updates, or one per address family) is one endpoint if address and
port are equal; it is in the best of the states that they say. An endpoint with two addresses (a dual-stack Service, an
attachment with two) is two endpoints: `addressFamily` chooses one.
"""

from __future__ import annotations

import msgspec

from datum_router.compiler.places import find_place, service_place
from datum_router.compiler.refs import is_permitted, refusal
from datum_router.manifests.holding import recorded_endpoints
from datum_router.manifests.indexes import BY_VPC_SERVICE, full_name
from datum_router.manifests.meta import ObjectKey, key_of
from datum_router.manifests.servicebinding import AddressFamily, ServiceBinding
from datum_router.manifests.vpcservice import VPCService
from datum_router.model.endpoint import Endpoint, EndpointKey, Locality, endpoint_key, make_endpoint, make_locality
from datum_router.plugins.protocols import Contribution, Hold, ManifestView, Resolution, ResolveProblem
from datum_router.reasons import Reason
from datum_router_kubernetes.addresses import AddressFinder, Found
from datum_router_kubernetes.kinds import BY_SERVICE, EndpointConditions, EndpointSlice, Service

ZONE_KEY = "topology.kubernetes.io/zone"
"""Topology key under which an EndpointSlice's zone is known."""

SERVICE_PATH = "spec.serviceRef.name"
PORTS_PATH = "spec.portMappings"


class BindingResolver:
    """Resolve the ServiceBindings that point to a VPCService."""

    __slots__ = ()

    def resolve(self, service: VPCService, view: ManifestView) -> Resolution | None:
        """Return what every binding to `service` gives, or None if there is no binding.

        A binding of another namespace needs a ReferenceGrant of the service's; the compiler reports it if it has none.
        """
        key = key_of("VPCService", service.metadata)
        problems: list[ResolveProblem] = []
        contributions: list[Contribution] = []
        for binding in view.select("ServiceBinding", BY_VPC_SERVICE, full_name(key.namespace, key.name)):
            if not isinstance(binding, ServiceBinding):
                continue
            one = _Binding(binding, service, view)
            if not is_permitted(view, referrer=one.key, target=key):
                continue
            contributions.append(one.run())
            problems += one.problems
        if not contributions:
            return None
        return Resolution(problems=tuple(problems), contributions=tuple(contributions))


class _Member(msgspec.Struct):
    """An endpoint before it is known which ones serve."""

    address: str
    port: int
    vpc: str
    locality: Locality
    is_ready: bool
    is_terminating: bool
    may_finish: bool  # terminating, but good enough if nothing else is


class _WantedPort(msgspec.Struct, frozen=True, kw_only=True):
    """A port of a Service. `number` is for slices that say none; without `is_named` they say none ever."""

    name: str = ""
    number: int
    is_named: bool = True


class _Binding:
    """One binding's resolution. `problems` are about what the binding refers to, whatever endpoints are held."""

    __slots__ = ("binding", "finder", "key", "locality", "members", "problems", "service", "view")

    def __init__(self, binding: ServiceBinding, service: VPCService, view: ManifestView) -> None:
        self.binding = binding
        self.service = service
        self.view = view
        self.key = key_of("ServiceBinding", binding.metadata)
        self.locality = service_place(service, view).locality
        self.members: dict[EndpointKey, _Member] = {}
        self.problems: list[ResolveProblem] = []
        self.finder = AddressFinder(binding.spec, view)

    def run(self) -> Contribution:
        """Return what the binding gives."""
        ref = self.binding.spec.service_ref
        namespace = ref.namespace or self.key.namespace
        target = ObjectKey(kind="Service", namespace=namespace, name=ref.name)
        service = self.view.get("Service", target.namespace, target.name)
        may_refer = is_permitted(self.view, referrer=self.key, target=target, group="")
        if not isinstance(service, Service):
            self._problem(SERVICE_PATH, Reason.SERVICE_NOT_FOUND, f"{target} is not there", missing=target)
        elif not may_refer:
            message, hint = refusal(self.key, target, group="")
            self._problem("spec.serviceRef.namespace", Reason.REF_NOT_PERMITTED, message, hint=hint, is_reference=False)
        else:
            self._find(service, target)
        if not may_refer:
            return Contribution(object=self.key)  # nothing that was taken before is held, either
        endpoints = self._endpoints()
        found = self.finder.shortfalls.messages()
        shortfalls = [self._shortfall(reason, text) for reason, text in found]
        if not endpoints and not shortfalls and not self.problems:
            family = self.binding.spec.address_family
            kind = "endpoints" if family is AddressFamily.DUAL else f"{family.value} endpoints"
            selected = "" if self.binding.spec.pod_selector is None else " that spec.podSelector selects"
            shortfalls = [self._shortfall(Reason.NO_ENDPOINTS, f"{target} has no {kind}{selected} at this port")]
        hold = None
        if not self.binding.spec.auto_sync:
            is_whole = all(reason is not Reason.NO_VPC_ADDRESS for reason, _ in found)
            hold = self._hold(endpoints, is_whole=is_whole)
        return Contribution(object=self.key, endpoints=endpoints, shortfalls=tuple(shortfalls), hold=hold)

    def _hold(self, endpoints: tuple[Endpoint, ...], *, is_whole: bool) -> Hold:
        """Return how endpoints are taken once: when there are some, all of them ready but for those on their way out.

        Pods of a Service that is just coming up are thus not frozen at the first that is ready.
        """
        members = self.members.values()
        spec = self.service.spec
        meta = self.binding.metadata
        by_key = {endpoint.key: endpoint for endpoint in endpoints}
        recorded = []
        for address, port, vpc in recorded_endpoints(self.binding):
            known = by_key.get(endpoint_key(address, port, vpc)) or self._endpoint(
                address, port, vpc, self.locality, is_serving=True
            )
            recorded.append(msgspec.structs.replace(known, is_serving=True))
        are_ready = any(one.is_ready for one in members) and all(one.is_ready or one.is_terminating for one in members)
        return Hold(
            token=(meta.uid, meta.creation_timestamp, self.binding.spec, spec.port, spec.topology, spec.location_ref),
            is_settled=is_whole and are_ready,
            recorded=tuple(recorded),
        )

    # --- what is referred to ---------------------------------------------------------------------------------------

    def _find(self, service: Service, target: ObjectKey) -> None:
        """Fill in `members` from the slices of a Service."""
        if service.spec.type == "ExternalName":
            self._problem(
                SERVICE_PATH,
                Reason.NOT_SERVED,
                f"{target} is an ExternalName for {service.spec.external_name or 'nothing'}, which has no endpoints",
                hint="write addresses into endpoints of the VPCService",
                is_reference=False,
            )
            return
        port = self._service_port(service, target)
        if port is None:
            return
        for item in self.view.select("EndpointSlice", BY_SERVICE, full_name(target.namespace, target.name)):
            if isinstance(item, EndpointSlice):
                self._take_slice(item, port)

    def _service_port(self, service: Service, target: ObjectKey) -> _WantedPort | None:
        """Return what stands behind the VPCService's port."""
        wanted = self.service.spec.port
        mappings = self.binding.spec.port_mappings
        path = SERVICE_PATH
        if mappings:
            path = PORTS_PATH
            mapped = [item for item in mappings if (item.vpc_port or item.service_port) == wanted]
            if not mapped:
                vpc_ports = ", ".join(str(item.vpc_port or item.service_port) for item in mappings)
                self._problem(
                    path,
                    Reason.PORT_NOT_FOUND,
                    f"no mapping has vpcPort {wanted}, the port of vpcservice {self.service.metadata.name} "
                    f"(found {vpc_ports})",
                    is_reference=False,
                )
                return None
            wanted = mapped[0].service_port
        ports = service.spec.ports or ()
        for port in ports:
            if port.port == wanted and port.protocol == "TCP":
                number = port.target_port if isinstance(port.target_port, int) else port.port
                return _WantedPort(name=port.name, number=number)
        if not ports and service.spec.is_headless:
            # A headless Service need not name ports; then its slices have none, and what is written here counts.
            return _WantedPort(number=wanted if mappings else self.service.spec.target_port or wanted, is_named=False)
        known = ", ".join(f"{port.port} {port.protocol}" for port in ports) or "none"
        tcp = [port.port for port in ports if port.protocol == "TCP"]
        hint = f"write portMappings: [{{servicePort: {tcp[0]}, vpcPort: {self.service.spec.port}}}]" if tcp else ""
        self._problem(
            path,
            Reason.PORT_NOT_FOUND,
            f"{target} has no TCP port {wanted} (found {known})",
            hint=hint if len(tcp) == 1 else "",
            is_reference=False,
        )
        return None

    # --- endpoints -------------------------------------------------------------------------------------------------

    def _take_slice(self, item: EndpointSlice, wanted: _WantedPort) -> None:
        if item.address_type not in ("IPv4", "IPv6"):
            self.finder.shortfalls.add(
                Reason.NOT_SERVED,
                f"endpointslice {item.metadata.namespace}/{item.metadata.name} has addressType {item.address_type}, "
                "expected IPv4 or IPv6: names are not looked up",
            )
            return
        port = _slice_port(item, wanted)
        if port is None:
            return
        for endpoint in item.endpoints or ():
            found = self.finder.find(item, endpoint)
            for address in found.addresses:
                self._add(address, port, endpoint.zone, endpoint.conditions, found)

    def _add(self, address: str, port: int, zone: str | None, conditions: EndpointConditions, found: Found) -> None:
        is_terminating = conditions.terminating is True
        is_published = self.binding.spec.publish_not_ready_addresses
        # `ready` of a terminating endpoint is true only if its Service has the API say so (publishNotReadyAddresses).
        is_ready = conditions.ready is True or (conditions.ready is None and not is_terminating)
        if is_published:
            is_ready = not is_terminating
        may_finish = is_terminating and (is_published or conditions.serving is not False)
        member = _Member(
            address=address,
            port=port,
            vpc=found.vpc,
            locality=self._locality(zone, found),
            is_ready=is_ready and found.is_reachable,
            is_terminating=is_terminating,
            may_finish=may_finish and found.is_reachable,
        )
        key = endpoint_key(address, port, found.vpc)
        before = self.members.get(key)
        if before is None:
            self.members[key] = member
            return
        before.is_ready |= member.is_ready
        before.may_finish |= member.may_finish
        before.is_terminating &= member.is_terminating

    def _endpoints(self) -> tuple[Endpoint, ...]:
        # In order of address: the order within a slice, and of slices, is the API's to change at will.
        members = [self.members[key] for key in sorted(self.members)]
        is_any_ready = any(one.is_ready for one in members)
        return tuple(
            self._endpoint(
                one.address,
                one.port,
                one.vpc,
                one.locality,
                is_serving=one.is_ready if is_any_ready else one.may_finish,
            )
            for one in members
        )

    def _endpoint(self, address: str, port: int, vpc: str, locality: Locality, *, is_serving: bool) -> Endpoint:
        origin = f"servicebinding:{self.key.namespace}/{self.key.name}"
        return make_endpoint(address, port, locality=locality, origin=origin, is_serving=is_serving, vpc=vpc)

    def _locality(self, zone: str | None, found: Found) -> Locality:
        """Return the place of the attachment, or the service's, refined by the zone that the slice states."""
        place = self.locality
        if found.location:
            place = find_place(self.view, namespace=found.namespace, name=found.location, path="").locality
        if not zone:
            return place
        return make_locality(
            {**dict(place.topology), ZONE_KEY: zone},
            location=place.location,
            latitude=place.latitude,
            longitude=place.longitude,
        )

    def _problem(
        self,
        path: str,
        reason: Reason,
        message: str,
        *,
        hint: str = "",
        is_reference: bool = True,
        missing: ObjectKey | None = None,
    ) -> None:
        self.problems.append(
            ResolveProblem(
                object=self.key,
                path=path,
                reason=reason,
                message=message,
                hint=hint,
                is_reference=is_reference,
                missing=missing,
            )
        )

    def _shortfall(self, reason: Reason, message: str) -> ResolveProblem:
        hint = "set addressSource: PodIP to use cluster addresses" if reason is Reason.NO_VPC_ADDRESS else ""
        return ResolveProblem(object=self.key, path=SERVICE_PATH, reason=reason, message=message, hint=hint)


def _slice_port(item: EndpointSlice, wanted: _WantedPort) -> int | None:
    """Return the number under which a slice has a port of its Service, which may differ between slices."""
    if not wanted.is_named:
        return wanted.number
    for port in item.ports or ():
        if (port.name or "") == wanted.name and (port.protocol or "TCP") == "TCP":
            return wanted.number if port.port is None else port.port
    return None
