"""From a VPCService's attachment to endpoints: pure, the same for a directory and for a cluster."""

from __future__ import annotations

import ipaddress

from datum_router.compiler.refs import is_permitted, refusal
from datum_router.manifests.meta import ObjectKey
from datum_router.manifests.vpcservice import VPCService
from datum_router.model.endpoint import Endpoint, make_endpoint, make_locality
from datum_router.plugins.protocols import ManifestView, Resolution, ResolveProblem
from datum_router.reasons import Reason
from datum_router_galactic.kinds import GROUP, VPC, VPCAttachment

PATH = "spec.vpcAttachmentRef.name"


class AttachmentResolver:
    """Resolve `spec.vpcAttachmentRef`: the host parts of the attachment's addresses, at the service's target port."""

    __slots__ = ()

    def resolve(self, service: VPCService, view: ManifestView) -> Resolution | None:
        """Return the endpoints of the service's attachment; None if it names none.

        An attachment that is not ready, or whose VPC is not, gives its endpoints marked as not serving.
        """
        ref = service.spec.vpc_attachment_ref
        if ref is None:
            return None
        namespace = ref.namespace or service.metadata.namespace
        key = ObjectKey(kind="VPCService", namespace=service.metadata.namespace, name=service.metadata.name)
        target = ObjectKey(kind="VPCAttachment", namespace=namespace, name=ref.name)
        attachment = view.get("VPCAttachment", namespace, ref.name)
        if not isinstance(attachment, VPCAttachment):
            problem = ResolveProblem(
                path=PATH,
                reason=Reason.ATTACHMENT_NOT_FOUND,
                message=f"vpcattachment {namespace}/{ref.name} is not there",
                missing=target,
            )
            return Resolution(problems=(problem,))
        if not is_permitted(view, referrer=key, target=target, group=GROUP):
            message, hint = refusal(key, target, group=GROUP)
            refused = ResolveProblem(
                path=PATH, reason=Reason.REF_NOT_PERMITTED, message=message, hint=hint, is_reference=False
            )
            return Resolution(problems=(refused,))
        problems: list[ResolveProblem] = []
        is_serving = True
        if attachment.status is None or not attachment.status.ready:
            is_serving = False
            problems.append(
                ResolveProblem(
                    path=PATH,
                    reason=Reason.ATTACHMENT_NOT_READY,
                    message=f"vpcattachment {namespace}/{ref.name} is not ready (status.ready is not true)",
                    is_reference=True,
                )
            )
        vpc_namespace = attachment.spec.vpc.namespace or namespace
        vpc = view.get("VPC", vpc_namespace, attachment.spec.vpc.name)
        # An absent VPC is no obstacle: a directory may hold attachments alone, and the kernel carries the packets.
        if isinstance(vpc, VPC) and (vpc.status is None or not vpc.status.ready):
            is_serving = False
            problems.append(
                ResolveProblem(
                    path=PATH,
                    reason=Reason.VPC_NOT_READY,
                    message=f"vpc {vpc_namespace}/{attachment.spec.vpc.name} is not ready (status.ready is not true)",
                    is_reference=True,
                )
            )
        port = service.spec.target_port or service.spec.port
        locality = make_locality(service.spec.topology)
        endpoints: list[Endpoint] = []
        for text in attachment.spec.interface.addresses:
            address = host_part(text)
            if address is None:
                problems.append(
                    ResolveProblem(
                        path=PATH,
                        reason=Reason.INVALID_VALUE,
                        message=f"vpcattachment {namespace}/{ref.name}: address {text!r} is no IP address",
                        hint="write it like 10.1.1.1/24",
                        is_reference=False,
                    )
                )
                continue
            endpoints.append(
                make_endpoint(
                    address,
                    port,
                    locality=locality,
                    origin="attachment",
                    is_serving=is_serving,
                    vpc=f"{vpc_namespace}/{attachment.spec.vpc.name}",
                )
            )
        return Resolution(endpoints=tuple(endpoints), problems=tuple(problems))


def host_part(text: str) -> str | None:
    """Return the address of `address/prefix` in canonical text, or None if it is none."""
    try:
        return str(ipaddress.ip_interface(text).ip)
    except ValueError:
        return None
