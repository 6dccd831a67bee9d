"""The attachments that traffic may come from: every VPCAttachment with its VPC, its labels and its addresses."""

from __future__ import annotations

from collections.abc import Sequence

from datum_router.manifests.indexes import full_name
from datum_router.model.egress import EgressAttachment
from datum_router.plugins.protocols import ManifestView
from datum_router_galactic.kinds import VPCAttachment, host_part, vpc_name


class GalacticAttachmentFinder:
    """Take what VPCAttachments say, ready or not: traffic that comes is somebody's. Bad addresses are left out."""

    __slots__ = ()

    def find(self, view: ManifestView) -> Sequence[EgressAttachment]:
        """Return all VPCAttachments, in order of namespace and name."""
        return [
            EgressAttachment(
                name=full_name(item.metadata.namespace, item.metadata.name),
                vpc=vpc_name(item),
                labels=item.metadata.labels or {},
                addresses=tuple(
                    dict.fromkeys(
                        found for text in item.spec.interface.addresses if (found := host_part(text)) is not None
                    )
                ),
            )
            for item in view.list("VPCAttachment")
            if isinstance(item, VPCAttachment)
        ]
