"""Specs: what hooks return. A spec names a capability and creates objects; creating has no side effects."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal

import msgspec

from datum_router.manifests.problem import Problem
from datum_router.model.policy import ProbeType
from datum_router.model.route import BalancingPolicy, PluginFilter
from datum_router.plugins.cluster import Cluster
from datum_router.plugins.protocols import (
    AttachmentFinder,
    DataPlane,
    DataPlaneObserver,
    EndpointResolver,
    PlaceFinder,
    Prober,
    RateLimitStore,
    Source,
)

if TYPE_CHECKING:
    from datum_router.balancing.base import Balancer
    from datum_router.compiler.link import Snapshot
    from datum_router.filters.base import Filter
    from datum_router.manifests.table import KindTable
    from datum_router.model.snapshot import Holder

API_VERSION = 1


class PluginInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Who a plugin is.

    Attributes:
        api: The hook API it was written for; must equal `API_VERSION`.
        posture: What traffic it may meet.
    """

    name: str
    version: str
    api: int
    stability: Literal["alpha", "beta", "stable"]
    posture: Literal["untrusted-downstream", "trusted-peers-only", "no-traffic"]


class SourceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A source by name.

    Attributes:
        create: Takes settings as text values, for files: `{"path": "DIR"}`; and, if it `needs_kinds`, the table of all
            kinds that plugins offer.
        needs_kinds: The source has to ask for each kind, and cannot just deliver what it finds.
    """

    name: str
    create: Callable[..., Source]
    needs_kinds: bool = False

    def make(self, settings: Mapping[str, str], kinds: KindTable) -> Source:
        """Create the source.

        Raises:
            ConfigError: A setting is missing, unknown or wrong.
        """
        return self.create(settings, kinds) if self.needs_kinds else self.create(settings)


class ValidatorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A further check of manifests of one kind: what only the plugin can tell, such as whether a key can be loaded.

    Attributes:
        kind: The kind by its name; if nobody offers that kind, the check is never asked.
        validate: Takes a typed manifest with which its kind found no error, and returns what is wrong with it. An error
            keeps this version out of force. Called once for each new content; must not raise, nor take longer than a
            few milliseconds. Messages must not hold secrets.
    """

    name: str
    kind: str
    validate: Callable[..., Iterable[Problem]]


class ResolverSpec(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint resolver. All are asked; their endpoints are joined in order of `priority`, lower first."""

    name: str
    create: Callable[[], EndpointResolver]
    priority: int = 100


class PlaceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A way to find out where the gateway is. All are asked in order of name; the first that knows it wins."""

    name: str
    create: Callable[[], PlaceFinder]


class AttachmentSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A way to find out which attachments there are. All are asked, and what they know is joined."""

    name: str
    create: Callable[[], AttachmentFinder]


class BalancerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A balancer by the name that `spec.loadBalancing` uses. `config`: None, it takes the route's BalancingPolicy."""

    name: str
    config: None = None
    create: Callable[[BalancingPolicy], Balancer]


class ServiceUse(enum.Enum):
    """Whether a filter asks a VPCService, which the manifest has to name then."""

    NONE = "none"
    OPTIONAL = "optional"
    REQUIRED = "required"


class FilterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A filter by the name that a rule's PluginFilter uses.

    Attributes:
        check: Returns what is wrong with a configuration, in one sentence that names the field and holds no secret;
            empty if it can be used. Asked when manifests are compiled; without it, everything goes to `create`.
        service: Whether `vpcServiceRef` has to be given, may be, or must not.
    """

    name: str
    create: Callable[[PluginFilter], Filter]
    check: Callable[[PluginFilter], str] | None = None
    service: ServiceUse = ServiceUse.NONE


class HealthCheckSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A prober for one probe type.

    Attributes:
        create: Takes nothing; or, if it `needs_settings`, the text settings of the data plane that the gateway runs.
    """

    type: ProbeType
    create: Callable[..., Prober]
    needs_settings: bool = False

    def make(self, settings: Mapping[str, str]) -> Prober:
        """Create the prober.

        Raises:
            ConfigError: A setting is wrong.
        """
        return self.create(settings) if self.needs_settings else self.create()


class DataPlaneSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A data plane by name. `create(holder, observer, settings)`; settings are text values, unknown ones refused.

    Attributes:
        validate: Raises ConfigError for settings that `create` would refuse, without creating anything. A gateway calls
            it once, before it starts workers, each of which calls `create`: what is to be logged once is logged here.
    """

    name: str
    validate: Callable[[Mapping[str, str]], object] | None = None
    create: Callable[[Holder[Snapshot], DataPlaneObserver, Mapping[str, str]], DataPlane]


class RateLimitStoreSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A store of rate limits that gateways share, by the name that the setting `rate_limit_store` uses.

    Attributes:
        create: Takes the text settings of `rate_limit_store_config`; does no I/O. Raises ConfigError for one that is
            missing, unknown or wrong. Called in each worker, and once before in the supervisor, to find that out.
    """

    name: str
    create: Callable[[Mapping[str, str]], RateLimitStore]


class ClusterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster to write to, by name. `create` takes the same text settings as the source of that name."""

    name: str
    create: Callable[[Mapping[str, str]], Cluster]
