"""Load plugins into one frozen `PluginSet`: API check, name clashes, block list, tracing.

Core names win: a plugin that takes a name of the core, or of another plugin, is refused; nothing is last-one-wins.
"""

from __future__ import annotations

import functools
import pkgutil
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec
import pluggy

from datum_router.compiler.diagnostics import Severity, did_you_mean
from datum_router.errors import ConfigError, PluginContractError, PluginLoadError
from datum_router.manifests.problem import Problem
from datum_router.manifests.table import KindTable, ResourceKind
from datum_router.model.policy import ProbeType
from datum_router.plugins import hookspecs
from datum_router.plugins.specs import (
    API_VERSION,
    AttachmentSpec,
    BalancerSpec,
    ClusterSpec,
    DataPlaneSpec,
    FilterSpec,
    HealthCheckSpec,
    PlaceSpec,
    PluginInfo,
    RateLimitStoreSpec,
    ResolverSpec,
    SourceSpec,
    ValidatorSpec,
)
from datum_router.policy.plugin_guard import PluginHook
from datum_router.reasons import Reason

T = TypeVar("T")

BUILTIN = "builtin"
HOOK_NAMES = tuple(sorted(name for name in vars(hookspecs) if name.startswith("datum_router_")))
SERVING_HOOKS = frozenset(
    ("datum_router_balancers", "datum_router_data_planes", "datum_router_filters", "datum_router_rate_limit_stores")
)
"""The hooks whose answers a process needs that serves, and neither reads manifests nor probes."""


class LoadedPlugin(msgspec.Struct, frozen=True, kw_only=True):
    """One plugin as it was loaded: for `datum-router plugins`, and to load it again in another process.

    Attributes:
        target: What its entry point refers to, `module` or `module:attribute`; empty if it came from none.
    """

    entry_point: str
    distribution: str
    info: PluginInfo
    hooks: tuple[str, ...]
    target: str = ""


class PluginSet(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that plugins offer, by name.

    Attributes:
        authors: The entry point that offers each of what is asked for every request, by hook and name.
    """

    plugins: tuple[LoadedPlugin, ...]
    kinds: KindTable
    sources: Mapping[str, SourceSpec]
    resolvers: tuple[ResolverSpec, ...]
    places: tuple[PlaceSpec, ...]
    attachments: tuple[AttachmentSpec, ...]
    balancers: Mapping[str, BalancerSpec]
    filters: Mapping[str, FilterSpec]
    health_checks: Mapping[ProbeType, HealthCheckSpec]
    data_planes: Mapping[str, DataPlaneSpec]
    clusters: Mapping[str, ClusterSpec]
    rate_limit_stores: Mapping[str, RateLimitStoreSpec]
    authors: Mapping[PluginHook, Mapping[str, str]]


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin module that may be loaded, and where it was found; `target` as in `LoadedPlugin`."""

    entry_point: str
    distribution: str
    load: Callable[[], object]
    target: str = ""


def installed() -> list[Candidate]:
    """Return the entry points of group `datum_router`, built-in first, then by name."""
    import importlib.metadata  # only here: with the parser of e-mail heads that it needs, 1.5 MB in each worker

    found = [
        Candidate(
            entry_point=point.name,
            distribution=point.dist.name if point.dist else "",
            load=point.load,
            target=f"{point.module}:{point.attr}" if point.attr else point.module,
        )
        for point in importlib.metadata.entry_points(group=hookspecs.PROJECT)
    ]
    return sorted(found, key=lambda candidate: (candidate.entry_point != BUILTIN, candidate.entry_point))


def candidate_of(entry_point: str, distribution: str, target: str) -> Candidate:
    """Return what `installed` would for an entry point that is known already, without looking for it on disk."""
    return Candidate(
        entry_point=entry_point,
        distribution=distribution,
        load=functools.partial(pkgutil.resolve_name, target),
        target=target,
    )


def load_plugins(
    candidates: Iterable[Candidate] | None = None,
    *,
    disabled: frozenset[str] = frozenset(),
    hooks: Collection[str] = HOOK_NAMES,
    trace: Callable[[str], None] | None = None,
) -> PluginSet:
    """Load every candidate (default: all installed) that is not disabled.

    Args:
        disabled: Entry-point names to leave out (`DATUM_ROUTER_DISABLE_PLUGINS`), not the built-in one.
        hooks: The hooks to call, beside the one that says who a plugin is; what the others would offer is missing.
        trace: Called with one line per hook call (`DATUM_ROUTER_TRACE_PLUGINS`).

    Raises:
        ConfigError: A name in `disabled` is none of a plugin that could be left out.
        PluginLoadError: Import failure, missing or wrong `datum_router_plugin_info`, unknown hook, or a name
            that is taken; the message names the plugin and what would be right.
        PluginContractError: A hook returned something else than it promises.
    """
    loaded: list[LoadedPlugin] = []
    results: dict[str, list[tuple[str, object]]] = {name: [] for name in HOOK_NAMES}
    found = list(installed() if candidates is None else candidates)
    _check_disabled(disabled, [candidate.entry_point for candidate in found])
    for candidate in found:
        name = candidate.entry_point
        if name in disabled:
            continue
        module = _import(candidate)
        implemented = _hooks_of(module, name)
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        manager.register(module, name)
        info: PluginInfo | None = None
        for hook in implemented:
            if info is not None and hook not in hooks:
                continue
            if trace is not None:
                trace(f"plugin {name}: calling {hook}()")
            try:
                answers = getattr(manager.hook, hook)()
            except Exception as error:
                raise PluginLoadError(f"plugin {name}: {hook}() raised {type(error).__name__}: {error}") from error
            if info is None:
                info = _checked_info(answers[-1] if answers else None, name)
            else:
                results[hook].extend((name, answer) for answer in answers)
        assert info is not None  # _hooks_of puts the identity hook first and refuses a module without it
        loaded.append(
            LoadedPlugin(
                entry_point=name,
                distribution=candidate.distribution,
                info=info,
                hooks=implemented,
                target=candidate.target,
            )
        )
    return _collect(loaded, results)


def _check_disabled(disabled: frozenset[str], names: Sequence[str]) -> None:
    """Refuse names that would leave nothing out: what somebody does not want to run would be loaded all the same."""
    known = sorted(name for name in names if name != BUILTIN)
    for name in sorted(disabled.difference(known)):
        hint = did_you_mean(name, known)
        raise ConfigError(
            f"disabled plugins (DATUM_ROUTER_DISABLE_PLUGINS): found {name!r}, "
            + ("which cannot be disabled" if name == BUILTIN else "which is not installed")
            + f"; expected some of {', '.join(known) or 'none'}"
            + (f" ({hint})" if hint else ""),
            reason=Reason.INVALID_VALUE,
        )


def _import(candidate: Candidate) -> object:
    try:
        return candidate.load()
    except Exception as error:
        raise PluginLoadError(
            f"plugin {candidate.entry_point}: cannot be imported from distribution "
            f"{candidate.distribution or 'unknown'}: {type(error).__name__}: {error}"
        ) from error


def _hooks_of(module: object, name: str) -> tuple[str, ...]:
    found = tuple(
        sorted(
            attribute
            for attribute, value in vars(module).items()
            if attribute.startswith("datum_router_") and isinstance(value, types.FunctionType)
        )
    )
    for hook in found:
        if hook not in HOOK_NAMES:
            hint = did_you_mean(hook, HOOK_NAMES)
            raise PluginLoadError(f"plugin {name}: unknown hook {hook}" + (f" ({hint})" if hint else ""))
        if not hasattr(vars(module)[hook], f"{hookspecs.PROJECT}_impl"):
            raise PluginLoadError(f"plugin {name}: {hook} is not marked with @hookimpl")
    if "datum_router_plugin_info" not in found:
        raise PluginLoadError(f"plugin {name}: datum_router_plugin_info() is missing; every plugin must say who it is")
    # The identity hook first: a plugin of another API version is refused before anything else of it runs.
    return ("datum_router_plugin_info", *(hook for hook in found if hook != "datum_router_plugin_info"))


def _checked_info(info: object, name: str) -> PluginInfo:
    if not isinstance(info, PluginInfo):
        raise PluginContractError(
            f"plugin {name}: datum_router_plugin_info() returned {type(info).__name__}, expected PluginInfo"
        )
    if info.api != API_VERSION:
        raise PluginLoadError(f"plugin {name}: written for plugin API {info.api}, this is API {API_VERSION}")
    return info


def _typed(results: Sequence[tuple[str, object]], hook: str, spec: type[T]) -> list[tuple[str, T]]:
    found: list[tuple[str, T]] = []
    for plugin, answer in results:
        if not isinstance(answer, list | tuple):
            raise PluginContractError(
                f"plugin {plugin}: {hook}() returned {type(answer).__name__}, expected a sequence of {spec.__name__}"
            )
        for item in answer:
            if not isinstance(item, spec):
                raise PluginContractError(
                    f"plugin {plugin}: {hook}() gave a {type(item).__name__}, expected {spec.__name__}"
                )
            found.append((plugin, item))
    return found


def _by_name(found: Sequence[tuple[str, T]], what: str, name_of: Callable[[T], str]) -> dict[str, T]:
    owners: dict[str, str] = {}
    table: dict[str, T] = {}
    for plugin, spec in found:
        name = name_of(spec)
        if name in table:
            raise PluginLoadError(f"plugin {plugin}: {what} {name!r} is already taken by plugin {owners[name]}")
        owners[name] = plugin
        table[name] = spec
    return table


def _validated(kind: ResourceKind, specs: Sequence[ValidatorSpec]) -> ResourceKind:
    """Return a kind that asks the validators of plugins, too, once it has found no error itself."""
    mine = [spec for spec in specs if spec.kind == kind.kind]
    if not mine:
        return kind

    def validate(manifest: msgspec.Struct) -> Iterable[Problem]:
        problems = [] if kind.validate is None else list(kind.validate(manifest))
        if not any(problem.severity is Severity.ERROR for problem in problems):
            for spec in mine:
                problems += spec.validate(manifest)
        return problems

    return msgspec.structs.replace(kind, validate=validate)


def _collect(loaded: Sequence[LoadedPlugin], results: Mapping[str, Sequence[tuple[str, object]]]) -> PluginSet:
    def typed(hook: str, spec: type[T]) -> list[tuple[str, T]]:
        return _typed(results[hook], hook, spec)

    kinds = typed("datum_router_resource_kinds", ResourceKind)
    _by_name(kinds, "kind", lambda kind: f"{kind.group}/{kind.version}/{kind.kind}")
    validators = typed("datum_router_validators", ValidatorSpec)
    _by_name(validators, "validator", lambda spec: spec.name)
    balancers = typed("datum_router_balancers", BalancerSpec)
    filters = typed("datum_router_filters", FilterSpec)
    resolvers = typed("datum_router_endpoint_resolvers", ResolverSpec)
    _by_name(resolvers, "resolver", lambda spec: spec.name)
    places = _by_name(typed("datum_router_places", PlaceSpec), "place", lambda spec: spec.name)
    attachments = _by_name(
        typed("datum_router_attachments", AttachmentSpec), "attachment finder", lambda spec: spec.name
    )
    probes = _by_name(typed("datum_router_health_checks", HealthCheckSpec), "health check", lambda spec: spec.type)
    return PluginSet(
        plugins=tuple(loaded),
        kinds=KindTable([_validated(kind, [spec for _, spec in validators]) for _, kind in kinds]),
        sources=_by_name(typed("datum_router_sources", SourceSpec), "source", lambda spec: spec.name),
        resolvers=tuple(sorted((spec for _, spec in resolvers), key=lambda spec: (spec.priority, spec.name))),
        places=tuple(spec for _, spec in sorted(places.items())),
        attachments=tuple(spec for _, spec in sorted(attachments.items())),
        balancers=_by_name(balancers, "balancer", lambda spec: spec.name),
        filters=_by_name(filters, "filter", lambda spec: spec.name),
        health_checks={ProbeType(name): spec for name, spec in probes.items()},
        data_planes=_by_name(typed("datum_router_data_planes", DataPlaneSpec), "data plane", lambda spec: spec.name),
        clusters=_by_name(typed("datum_router_clusters", ClusterSpec), "cluster", lambda spec: spec.name),
        rate_limit_stores=_by_name(
            typed("datum_router_rate_limit_stores", RateLimitStoreSpec), "rate limit store", lambda spec: spec.name
        ),
        authors={
            PluginHook.BALANCER: {spec.name: plugin for plugin, spec in balancers},
            PluginHook.FILTER: {spec.name: plugin for plugin, spec in filters},
        },
    )
