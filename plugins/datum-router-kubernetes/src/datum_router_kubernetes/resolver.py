"""From ServiceBindings to endpoints: Service -> EndpointSlices -> (pod -> attachment ->) addresses. Pure, no I/O.

A Service's slices hold cluster pod addresses, but the router must reach VPC addresses. So by default
(`addressSource: Attachment`) an endpoint that stands for a pod with the attachment annotation is replaced by the
attachment's addresses; without one its slice address is used. `PodIP` and `EndpointSlice` use slice addresses always.
"""

from __future__ import annotations

import ipaddress

import msgspec

from datum_router.compiler.diagnostics import did_you_mean
from datum_router.compiler.refs import names_in
from datum_router.manifests.indexes import BY_VPC_SERVICE, full_name
from datum_router.manifests.meta import ObjectKey
from datum_router.manifests.servicebinding import AddressFamily, AddressSource, ServiceBinding
from datum_router.manifests.vpcservice import VPCService
from datum_router.model.endpoint import Endpoint, Locality, make_endpoint, make_locality
from datum_router.plugins.protocols import ManifestView, Resolution, ResolveProblem
from datum_router.reasons import Reason
from datum_router_kubernetes.kinds import (
    ATTACHMENT_ANNOTATION,
    BY_SERVICE,
    EndpointSlice,
    Pod,
    Service,
    ServicePort,
    SliceEndpoint,
)

ZONE_KEY = "topology.kubernetes.io/zone"
"""Topology key under which an EndpointSlice's zone is known."""


class BindingResolver:
    """Resolve the ServiceBindings that point to a VPCService."""

    __slots__ = ()

    def resolve(self, service: VPCService, view: ManifestView) -> Resolution | None:
        """Return the endpoints of every binding to `service`, or None if there is no binding."""
        key = full_name(service.metadata.namespace, service.metadata.name)
        endpoints: list[Endpoint] = []
        problems: list[ResolveProblem] = []
        is_bound = False
        for binding in view.select("ServiceBinding", BY_VPC_SERVICE, key):
            if not isinstance(binding, ServiceBinding):
                continue
            is_bound = True
            one = _Binding(binding, service, view)
            one.run()
            endpoints += one.endpoints
            problems += one.problems
        if not is_bound:
            return None
        return Resolution(endpoints=tuple(endpoints), problems=tuple(problems))


class _Binding:
    """One binding's resolution."""

    __slots__ = ("binding", "endpoints", "key", "locality", "problems", "service", "view")

    def __init__(self, binding: ServiceBinding, service: VPCService, view: ManifestView) -> None:
        self.binding = binding
        self.service = service
        self.view = view
        self.key = ObjectKey(kind="ServiceBinding", namespace=binding.metadata.namespace, name=binding.metadata.name)
        self.locality = make_locality(service.spec.topology)
        self.endpoints: list[Endpoint] = []
        self.problems: list[ResolveProblem] = []

    def run(self) -> None:
        """Fill `endpoints` and `problems`."""
        ref = self.binding.spec.service_ref
        namespace = ref.namespace or self.binding.metadata.namespace
        if namespace != self.binding.metadata.namespace:
            self._problem(
                "spec.serviceRef.namespace",
                Reason.REF_NOT_PERMITTED,
                f"service {namespace}/{ref.name} is in another namespace, which needs its consent",
                hint="bind it from its own namespace and export the vpcservice instead",
                is_reference=False,
            )
            return
        found = self.view.get("Service", namespace, ref.name)
        slices = [
            item
            for item in self.view.select("EndpointSlice", BY_SERVICE, full_name(namespace, ref.name))
            if isinstance(item, EndpointSlice)
        ]
        if not isinstance(found, Service):
            self._problem(
                "spec.serviceRef.name",
                Reason.SERVICE_NOT_FOUND,
                f"service {namespace}/{ref.name} is not there",
                hint=did_you_mean(ref.name, names_in(self.view, "Service", namespace)),
            )
            return
        port = self._service_port(found)
        if port is None:
            return
        for item in slices:
            self._take_slice(item, port)

    def _service_port(self, service: Service) -> ServicePort | None:
        wanted = self.service.spec.port
        mappings = self.binding.spec.port_mappings or ()
        if mappings:
            mapped = [item for item in mappings if (item.vpc_port or item.service_port) == wanted]
            if not mapped:
                vpc_ports = ", ".join(str(item.vpc_port or item.service_port) for item in mappings)
                self._problem(
                    "spec.portMappings",
                    Reason.PORT_NOT_FOUND,
                    f"no mapping has vpcPort {wanted}, the port of vpcservice {self.service.metadata.name} "
                    f"(found {vpc_ports})",
                    is_reference=False,
                )
                return None
            wanted = mapped[0].service_port
        for port in service.spec.ports:
            if port.port == wanted and port.protocol == "TCP":
                return port
        known = ", ".join(str(port.port) for port in service.spec.ports) or "none"
        self._problem(
            "spec.portMappings" if mappings else "spec.serviceRef.name",
            Reason.PORT_NOT_FOUND,
            f"service {service.metadata.namespace}/{service.metadata.name} has no TCP port {wanted} (found {known})",
            is_reference=False,
        )
        return None

    def _take_slice(self, item: EndpointSlice, service_port: ServicePort) -> None:
        if item.address_type not in ("IPv4", "IPv6"):
            return
        family = self.binding.spec.address_family
        if family is AddressFamily.IPV4 and item.address_type != "IPv4":
            return
        if family is AddressFamily.IPV6 and item.address_type != "IPv6":
            return
        port = _slice_port(item, service_port)
        if port is None:
            return
        for endpoint in item.endpoints or ():
            is_serving = self._is_serving(endpoint)
            locality = self._locality_of(endpoint)
            for address in self._addresses(endpoint):
                self.endpoints.append(
                    make_endpoint(address, port, locality=locality, origin="servicebinding", is_serving=is_serving)
                )

    def _locality_of(self, endpoint: SliceEndpoint) -> Locality:
        """Return the service's place, refined by the zone that the slice states."""
        if not endpoint.zone:
            return self.locality
        return make_locality({**dict(self.locality.topology), ZONE_KEY: endpoint.zone})

    def _is_serving(self, endpoint: SliceEndpoint) -> bool:
        if self.binding.spec.publish_not_ready_addresses:
            return True
        conditions = endpoint.conditions
        # `ready` is null for unknown, which consumers read as true; it is never true for a terminating endpoint
        # (unless the Service publishes not-ready addresses), so `serving` adds nothing for new requests.
        return conditions.ready is not False and conditions.terminating is not True

    def _addresses(self, endpoint: SliceEndpoint) -> list[str]:
        found: list[str] = []
        if self.binding.spec.address_source is AddressSource.ATTACHMENT:
            found = self._attachment_addresses(endpoint)
        if not found and endpoint.addresses:
            found = [endpoint.addresses[0]]
        canonical = []
        for text in found:
            try:
                canonical.append(str(ipaddress.ip_interface(text).ip))
            except ValueError:
                self._problem(
                    "spec.serviceRef.name",
                    Reason.INVALID_VALUE,
                    f"endpoint address {text!r} is no IP address",
                    is_reference=False,
                )
        return canonical

    def _attachment_addresses(self, endpoint: SliceEndpoint) -> list[str]:
        ref = endpoint.target_ref
        if ref is None or ref.kind != "Pod":
            return []
        namespace = ref.namespace or self.binding.metadata.namespace
        pod = self.view.get("Pod", namespace, ref.name)
        if not isinstance(pod, Pod):
            return []
        name = (pod.metadata.annotations or {}).get(ATTACHMENT_ANNOTATION, "")
        if not name:
            return []
        attachment = self.view.get("VPCAttachment", namespace, name)
        if attachment is None:
            self._problem(
                "spec.serviceRef.name",
                Reason.ATTACHMENT_NOT_FOUND,
                f"pod {namespace}/{ref.name} names vpcattachment {name}, which is not there; its pod address is used",
            )
            return []
        return _interface_addresses(attachment, self.binding.spec.address_family)

    def _problem(self, path: str, reason: Reason, message: str, *, hint: str = "", is_reference: bool = True) -> None:
        self.problems.append(
            ResolveProblem(
                object=self.key, path=path, reason=reason, message=message, hint=hint, is_reference=is_reference
            )
        )


def _interface_addresses(attachment: msgspec.Struct, family: AddressFamily) -> list[str]:
    # The attachment's type belongs to another plugin; its published shape is `spec.interface.addresses`.
    interface = getattr(getattr(attachment, "spec", None), "interface", None)
    addresses = [str(text) for text in getattr(interface, "addresses", ())]
    if family is AddressFamily.IPV4:
        return [text for text in addresses if ":" not in text]
    if family is AddressFamily.IPV6:
        return [text for text in addresses if ":" in text]
    return addresses


def _slice_port(item: EndpointSlice, service_port: ServicePort) -> int | None:
    ports = item.ports or ()
    for port in ports:
        if (port.name or "") == service_port.name and port.port is not None and (port.protocol or "TCP") == "TCP":
            return port.port
    return None
