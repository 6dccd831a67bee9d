"""ReferenceGrant of the Gateway API: consent of a namespace to references from others. Read only."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from datum_router.manifests.meta import ObjectMeta

GATEWAY_GROUP: Final = "gateway.networking.k8s.io"
BY_TARGET: Final = "target"
"""Index of ReferenceGrant: namespace, group and kind to which it lets others refer, as `target_value` writes them."""

MAX_GRANT_ITEMS: Final = 16
"""Items of `from` and of `to`, as in the published schema."""


class GrantFrom(msgspec.Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """Who may refer: objects of this kind in that namespace. `group` is empty for core."""

    group: str = ""
    kind: str
    namespace: str


class GrantTo(msgspec.Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """What may be referred to: objects of this kind in the grant's own namespace, one of them if there is a name."""

    group: str = ""
    kind: str
    name: str | None = None


class ReferenceGrantSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Every `from` may refer to every `to`."""

    froms: Annotated[tuple[GrantFrom, ...], Meta(max_length=MAX_GRANT_ITEMS)] = msgspec.field(name="from")
    to: Annotated[tuple[GrantTo, ...], Meta(max_length=MAX_GRANT_ITEMS)]


class ReferenceGrant(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A gateway.networking.k8s.io ReferenceGrant, v1 or v1beta1."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: ReferenceGrantSpec

    def permits(self, *, source: GrantFrom, target: GrantTo) -> bool:
        """Tell whether `source` may refer to an object of the grant's namespace; `target` has its name."""
        return source in self.spec.froms and any(
            (item.group, item.kind) == (target.group, target.kind) and item.name in (None, "", target.name)
            for item in self.spec.to
        )


def grant_content(grant: ReferenceGrant) -> object:
    """Return what counts as a change."""
    return grant.spec


def target_value(namespace: str, group: str, kind: str) -> str:
    """Return the value of `BY_TARGET` for a kind in a namespace."""
    return f"{namespace}/{group}/{kind}"


def grant_targets(grant: ReferenceGrant) -> tuple[str, ...]:
    """Return the values of `BY_TARGET`."""
    return tuple(target_value(grant.metadata.namespace, item.group, item.kind) for item in grant.spec.to)
