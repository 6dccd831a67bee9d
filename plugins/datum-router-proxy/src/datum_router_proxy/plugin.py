"""Hook implementations of the built-in data plane.

What serves and what probes are imported when they are created: workers never probe (httpcore and what it needs are
4 MB in each of them), and the supervisor never serves.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from datum_router.model.policy import ProbeType
from datum_router.plugins.hookspecs import hookimpl
from datum_router.plugins.specs import DataPlaneSpec, HealthCheckSpec, PluginInfo, ValidatorSpec
from datum_router_proxy.memory import needed_descriptors, warn_of_descriptor_limit
from datum_router_proxy.settings import from_text

if TYPE_CHECKING:
    from datum_router.compiler.link import Snapshot
    from datum_router.manifests.problem import Problem
    from datum_router.manifests.secret import ConfigMap, Secret
    from datum_router.model.snapshot import Holder
    from datum_router.plugins.protocols import DataPlane, DataPlaneObserver, Prober


@hookimpl
def datum_router_plugin_info() -> PluginInfo:
    """Say who this is."""
    return PluginInfo(name="proxy", version="0.1.0", api=1, stability="beta", posture="untrusted-downstream")


@hookimpl
def datum_router_data_planes() -> Sequence[DataPlaneSpec]:
    """Add the data plane `proxy`."""
    return [DataPlaneSpec(name="proxy", validate=_validate, create=_data_plane)]


@hookimpl
def datum_router_health_checks() -> Sequence[HealthCheckSpec]:
    """Add HTTP, TCP and gRPC probes."""
    return [
        HealthCheckSpec(type=kind, create=functools.partial(_prober, kind), needs_settings=True) for kind in ProbeType
    ]


@hookimpl
def datum_router_validators() -> Sequence[ValidatorSpec]:
    """Add the checks whether certificates, keys and revocation lists can be used where they are named."""
    return [
        ValidatorSpec(name="certificate", kind="Secret", validate=_validate_secret),
        ValidatorSpec(name="ca-bundle", kind="ConfigMap", validate=_validate_config_map),
    ]


def _validate_config_map(config_map: ConfigMap) -> Iterable[Problem]:
    from datum_router_proxy.certificate import validate_config_map

    return validate_config_map(config_map)


def _validate_secret(secret: Secret) -> Iterable[Problem]:
    from datum_router_proxy.certificate import validate_secret

    return validate_secret(secret)


def _validate(settings: Mapping[str, str]) -> None:
    """Refuse settings that cannot be used; the supervisor asks once, so what falls short is said here, not by workers.

    Raises:
        ConfigError: What `from_text` says.
    """
    warn_of_descriptor_limit(needed_descriptors(from_text(settings).max_connections))


def _data_plane(holder: Holder[Snapshot], observer: DataPlaneObserver, settings: Mapping[str, str]) -> DataPlane:
    from datum_router_proxy.dataplane import create

    return create(holder, observer, settings)


def _prober(kind: ProbeType, settings: Mapping[str, str]) -> Prober:
    from datum_router_proxy.prober import make_prober

    # The settings may be another data plane's: only what says how to reach endpoints is read.
    mine = {name: settings[name] for name in ("vpc_interfaces", "vpc_required") if name in settings}
    return make_prober(kind, from_text(mine).vpcs())
