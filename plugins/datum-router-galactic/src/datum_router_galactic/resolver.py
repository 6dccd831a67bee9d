"""From a VPCService to its VPCAttachments, their VPCs and their addresses. Pure: the same for files and clusters.

An attachment serves if it is ready and its VPC, as far as that is known, is ready as well. One that does not serve
gives its endpoints all the same, marked as such. What is wrong with one attachment costs no other one anything.

A name or selector that no VPCAttachment answers to is looked for among the EndpointSlices that Galactic's second
generation writes for pods: it has no VPCAttachments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from datum_router.compiler.places import Place, find_place, service_place
from datum_router.compiler.refs import is_permitted, refusal
from datum_router.manifests.indexes import BY_VPC_ID, full_name, nameless_vpc
from datum_router.manifests.labels import selects
from datum_router.manifests.location import LOCATION_ANNOTATION
from datum_router.manifests.meta import ObjectKey, key_of
from datum_router.manifests.parts import LabelSelector
from datum_router.manifests.rules import check_address
from datum_router.manifests.vpcservice import VPCService
from datum_router.model.endpoint import Endpoint, Locality, make_endpoint
from datum_router.plugins.protocols import ManifestView, Resolution, ResolveProblem, VpcNetwork
from datum_router.reasons import Reason
from datum_router_galactic.identifiers import ATTACHMENT_BITS, VPC_BITS, to_base62
from datum_router_galactic.kinds import (
    BY_LABEL,
    GROUP,
    VPC,
    VPCAttachment,
    host_part,
    identifier_of,
    label_value,
    location_of,
    routes_of,
    vpc_name,
    vpc_problem,
)
from datum_router_galactic.slices import PodSlice, slices_in, slices_named

REF_PATH = "spec.vpcAttachmentRef.name"
SELECTOR_PATH = "spec.vpcAttachmentSelector"
ORIGIN = "attachment"

MAX_NAMED_PROBLEMS = 3
"""Attachments that a message about several names; the others are counted."""


class AttachmentResolver:
    """Resolve `spec.vpcAttachmentRef` and `spec.vpcAttachmentSelector`, at the service's target port."""

    __slots__ = ()

    def resolve(self, service: VPCService, view: ManifestView) -> Resolution | None:
        """Return the endpoints of the service's attachments; None if it names and selects none."""
        spec = service.spec
        if spec.vpc_attachment_ref is None and spec.vpc_attachment_selector is None:
            return None
        return _Resolving(service, view).run()


class _Resolving:
    """One resolution."""

    __slots__ = ("endpoints", "key", "networks", "path", "place", "port", "problems", "service", "view")

    def __init__(self, service: VPCService, view: ManifestView) -> None:
        self.service, self.view = service, view
        self.key = key_of("VPCService", service.metadata)
        self.port = service.spec.target_port or service.spec.port
        self.place: Locality = service_place(service, view).locality
        self.path = REF_PATH
        self.endpoints: list[Endpoint] = []
        self.networks: dict[VpcNetwork, None] = {}
        self.problems: list[ResolveProblem] = []

    def run(self) -> Resolution:
        """Return what was found."""
        self._named()
        if self.service.spec.vpc_attachment_selector is not None:
            named, self.problems, self.path = self.problems, [], SELECTOR_PATH
            self._selected(self.service.spec.vpc_attachment_selector)
            self.problems = [
                *named,
                *_summed(self.problems, is_any_serving=any(one.is_serving for one in self.endpoints)),
            ]
        return Resolution(endpoints=tuple(self.endpoints), problems=tuple(self.problems), networks=tuple(self.networks))

    def _named(self) -> None:
        ref = self.service.spec.vpc_attachment_ref
        if ref is None:
            return
        target = ObjectKey(kind="VPCAttachment", namespace=ref.namespace or self.key.namespace, name=ref.name)
        attachment = self.view.get("VPCAttachment", target.namespace, target.name)
        slices = [] if attachment is not None else slices_named(self.view, target.namespace, target.name)
        if not isinstance(attachment, VPCAttachment) and not slices:
            self._problem(Reason.ATTACHMENT_NOT_FOUND, f"{target} is not there", missing=target)
        elif not is_permitted(self.view, referrer=self.key, target=target, group=GROUP):
            message, hint = refusal(self.key, target, group=GROUP)
            self._problem(Reason.REF_NOT_PERMITTED, message, hint=hint, is_reference=False)
        elif isinstance(attachment, VPCAttachment):
            self._take(attachment)
        for one in slices if not self.problems else ():
            self._take_slice(one)

    def _selected(self, selector: LabelSelector) -> None:
        """Take what a selector selects in the service's own namespace: nobody else has to consent."""
        namespace = self.key.namespace
        is_any = False
        for one in self.view.select("VPCAttachment", BY_LABEL, _narrowest(namespace, selector)):
            if isinstance(one, VPCAttachment) and selects(selector, one.metadata.labels):
                is_any = True
                self._take(one)
        for item in slices_in(self.view, namespace):
            if selects(selector, item.labels):
                is_any = True
                self._take_slice(item)
        if not is_any:
            self._problem(
                Reason.ATTACHMENT_NOT_FOUND,
                f"no vpcattachment of namespace {namespace} has the labels that are selected",
            )

    # --- the first generation ------------------------------------------------------------------------------------

    def _take(self, attachment: VPCAttachment) -> None:
        """Take one attachment."""
        meta = attachment.metadata
        where = f"vpcattachment {full_name(meta.namespace, meta.name)}"
        is_serving = attachment.status is not None and attachment.status.ready
        if not is_serving:
            self._problem(Reason.ATTACHMENT_NOT_READY, f"{where} is not ready (status.ready is not true)")
        self._remark(Reason.INVALID_IDENTIFIER, f"{where}: status.identifier", attachment, ATTACHMENT_BITS)
        vpc = vpc_name(attachment)
        if not vpc:
            is_serving = False
            hint = "set spec.vpc of the VPCAttachment"
            self._problem(Reason.VPC_NOT_FOUND, f"{where} {vpc_problem(attachment)}", hint=hint)
        is_serving = self._is_vpc_ready(vpc) and is_serving
        self._take_routes(attachment, vpc, where)
        locality = self._place_of(attachment)
        count = len(self.endpoints)
        bare: list[str] = []
        for text in attachment.spec.interface.addresses:
            address = host_part(text)
            if self._is_bad(address or text, where, "write it like 10.1.1.1/24"):
                continue
            assert address is not None
            if "/" not in text:
                bare.append(text)
            self.endpoints.append(
                make_endpoint(address, self.port, locality=locality, origin=ORIGIN, is_serving=is_serving, vpc=vpc)
            )
        if bare:
            message = f"{where}: {', '.join(bare)} without a prefix length, which Galactic's operator refuses"
            self._problem(Reason.NO_PREFIX_LENGTH, message, hint="write it like 10.1.1.1/24", is_remark=True)
        if len(self.endpoints) == count:
            hint = "list addresses in spec.interface.addresses of the VPCAttachment"
            self._problem(Reason.NO_VPC_ADDRESS, f"{where} has no address that can be used", hint=hint)

    def _is_vpc_ready(self, name: str) -> bool:
        """Tell whether a VPC may be used, and report if it may not.

        An absent VPC is no obstacle: a directory may hold attachments alone, and the kernel carries the packets.
        """
        namespace, _, bare = name.partition("/")
        vpc = self.view.get("VPC", namespace, bare) if name else None
        if not isinstance(vpc, VPC):
            return True
        self._remark(Reason.INVALID_IDENTIFIER, f"vpc {name}: status.identifier", vpc, VPC_BITS)
        if vpc.status is not None and vpc.status.ready:
            for network in vpc.spec.networks:
                self._reach(network, name)
            return True
        self._problem(Reason.VPC_NOT_READY, f"vpc {name} is not ready (status.ready is not true)")
        return False

    def _take_routes(self, attachment: VPCAttachment, vpc: str, where: str) -> None:
        routes, problems = routes_of(attachment)
        for route in routes:
            if vpc:
                self._reach(route.destination, vpc)
        if problems:
            said = "; ".join(why for _, why in problems[:MAX_NAMED_PROBLEMS])
            hint = "give every route a destination in CIDR form and a via of the same address family"
            self._problem(Reason.INVALID_ATTACHMENT_ROUTE, f"{where}: {said}", hint=hint, is_remark=True)

    def _reach(self, network: str, vpc: str) -> None:
        if host_part(network) is not None:  # anything else is reported where it is written
            self.networks[VpcNetwork(network=network, vpc=vpc)] = None

    def _place_of(self, attachment: VPCAttachment) -> Locality:
        """Return where an attachment is: at the Location that it names, else where the service is."""
        name = location_of(attachment)
        if not name:
            return self.place
        meta = attachment.metadata
        path = f'metadata.annotations["{LOCATION_ANNOTATION}"]'
        found: Place = find_place(self.view, namespace=meta.namespace, name=name, path=path)
        problem = found.problem
        if problem is not None:
            self._problem(
                problem.reason,
                f"vpcattachment {meta.namespace}/{meta.name}, {path}: {problem.message}",
                hint=problem.hint,
                is_remark=problem.is_remark,
                missing=problem.missing,
            )
        return found.locality

    # --- the second generation -----------------------------------------------------------------------------------

    def _take_slice(self, one: PodSlice) -> None:
        """Take the slice of one pod."""
        where = f"endpointslice {one.namespace}/{one.name}"
        if one.tenant is None:
            hint = "it is VPC and attachment in base62, such as jU-G"
            self._problem(Reason.INVALID_IDENTIFIER, f"{where}: {one.problem}", hint=hint, is_reference=False)
            return
        vpc_id = to_base62(one.tenant.vpc)
        known = next((item for item in self.view.select("VPC", BY_VPC_ID, vpc_id) if isinstance(item, VPC)), None)
        vpc = nameless_vpc(vpc_id) if known is None else full_name(known.metadata.namespace, known.metadata.name)
        is_vpc_ready = known is None or self._is_vpc_ready(vpc)
        count = len(self.endpoints)
        for text, is_ready in one.addresses:
            if not self._is_bad(text, where, "write it without a prefix length"):
                address = host_part(text) or text
                self.endpoints.append(
                    make_endpoint(
                        address,
                        self.port,
                        locality=self.place,
                        origin=ORIGIN,
                        is_serving=is_ready and is_vpc_ready,
                        vpc=vpc,
                    )
                )
        if len(self.endpoints) == count:
            self._problem(Reason.NO_VPC_ADDRESS, f"{where} has no address that can be used")

    # --- what is wrong -------------------------------------------------------------------------------------------

    def _is_bad(self, text: str, where: str, hint: str) -> bool:
        """Tell whether a text is no address that can be dialled, and report it."""
        for found in check_address("", text):
            self._problem(
                Reason.INVALID_ADDRESS, f"{where}: {found.message}", hint=found.hint or hint, is_reference=False
            )
            return True
        return False

    def _remark(self, reason: Reason, what: str, item: VPC | VPCAttachment, bits: int) -> None:
        _, problem = identifier_of(item.status, bits)
        if problem:
            self._problem(reason, f"{what}: {problem}", hint="put it in quotes, as Galactic wrote it", is_remark=True)

    def _problem(
        self,
        reason: Reason,
        message: str,
        *,
        hint: str = "",
        is_reference: bool = True,
        is_remark: bool = False,
        missing: ObjectKey | None = None,
    ) -> None:
        self.problems.append(
            ResolveProblem(
                path=self.path,
                reason=reason,
                message=message,
                hint=hint,
                is_reference=is_reference and not is_remark,
                is_remark=is_remark,
                missing=missing,
            )
        )


def _narrowest(namespace: str, selector: LabelSelector) -> str:
    """Return a value of `BY_LABEL` that all have that are selected."""
    labels: Mapping[str, str] = selector.match_labels or {}
    for key in sorted(labels):
        return label_value(namespace, key, labels[key])
    return namespace


def _summed(problems: Sequence[ResolveProblem], *, is_any_serving: bool) -> list[ResolveProblem]:
    """Return one problem a reason. While others serve, an attachment that does not is like a pod that is not ready."""
    by_reason: dict[tuple[Reason, bool, bool], list[ResolveProblem]] = {}
    for one in problems:
        by_reason.setdefault((one.reason, one.is_reference, one.is_remark), []).append(one)
    summed = []
    for (reason, is_reference, is_remark), found in by_reason.items():
        texts = list(dict.fromkeys(one.message for one in found))
        more = len(texts) - MAX_NAMED_PROBLEMS
        message = "; ".join(texts[:MAX_NAMED_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
        is_mild = is_any_serving and reason in (
            Reason.ATTACHMENT_NOT_READY,
            Reason.VPC_NOT_READY,
            Reason.VPC_NOT_FOUND,
            Reason.NO_VPC_ADDRESS,
        )
        summed.append(
            ResolveProblem(
                path=found[0].path,
                reason=reason,
                message=message,
                hint=found[0].hint,
                is_reference=is_reference and not is_mild,
                is_remark=is_remark or is_mild,
                missing=found[0].missing,
            )
        )
    return summed
