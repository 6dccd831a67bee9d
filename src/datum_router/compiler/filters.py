"""From filters of a VPCRoute to the model's, with the services that they need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from datum_router.compiler.diagnostics import Severity, did_you_mean
from datum_router.compiler.refs import Finding, resolve_service
from datum_router.compiler.services import service_key
from datum_router.filters.base import filter_problem
from datum_router.filters.rewrite import replaced_prefix_by
from datum_router.manifests import vpcroute as wire
from datum_router.manifests.meta import ObjectKey, ObjectRef, parse_duration
from datum_router.manifests.routefilters import FaultInjection, PluginRef
from datum_router.model.filters import Fault, Mirror
from datum_router.model.route import FilterConfig, HeaderEdit, PluginFilter, Redirect, Rewrite, Rule
from datum_router.model.service import ServiceKey
from datum_router.plugins.protocols import ManifestView
from datum_router.plugins.specs import FilterSpec, ServiceUse
from datum_router.policy.plugin_guard import PLUGIN_ERRORS
from datum_router.reasons import Reason


class FilterCompiler:
    """Compile the filters of one route; what is wrong with references goes to `findings`."""

    __slots__ = ("_findings", "_key", "_view")

    def __init__(self, key: ObjectKey, view: ManifestView, findings: list[Finding]) -> None:
        self._key = key
        self._view = view
        self._findings = findings

    def compile(
        self, items: Sequence[wire.RouteFilter], path: str, steps: Sequence[int] | None = None
    ) -> tuple[FilterConfig, ...]:
        """Return the filters of the list at `path`, or those at the positions in `steps`."""
        chosen = range(len(items)) if steps is None else steps
        return tuple([self._filter(items[index], f"{path}[{index}]") for index in chosen])

    def _filter(self, item: wire.RouteFilter, path: str) -> FilterConfig:
        """Return one served filter of a manifest as the model's; validation has refused all others."""
        if item.request_header_modifier is not None:
            return _header_edit(item.request_header_modifier, is_response=False)
        if item.response_header_modifier is not None:
            return _header_edit(item.response_header_modifier, is_response=True)
        if item.request_redirect is not None:
            return _redirect(item.request_redirect)
        if item.url_rewrite is not None:
            full, prefix = _path_modifier(item.url_rewrite.path)
            return Rewrite(hostname=item.url_rewrite.hostname or "", full_path=full, prefix_path=prefix)
        if item.request_mirror is not None:
            mirror = item.request_mirror
            problem = self._reference(mirror.vpc_service_ref, f"{path}.requestMirror", "nothing is copied")
            return Mirror(service=self._service(mirror.vpc_service_ref), problem=problem, percent=mirror.percent)
        if item.fault_injection is not None:
            return _fault(item.fault_injection)
        if item.plugin is not None:
            return self._plugin(item.plugin, f"{path}.plugin")
        raise AssertionError(f"filter {item.type} passed validation but is not served")

    def _plugin(self, item: PluginRef, path: str) -> PluginFilter:
        """Return a plugin's filter; `filter_findings` says what is wrong with it."""
        ref = item.vpc_service_ref
        problem = ""
        if ref is not None:
            problem = self._reference(ref, path, f"filter {item.name} cannot ask it")
        return PluginFilter(
            name=item.name,
            config=msgspec.json.encode(item.config or {}, order="sorted").decode(),
            service=self._service(ref) if ref is not None else ServiceKey(""),
            problem=problem,
        )

    def _service(self, ref: ObjectRef) -> ServiceKey:
        return service_key(ref.namespace or self._key.namespace, ref.name)

    def _reference(self, ref: ObjectRef, path: str, effect: str) -> str:
        """Follow a reference to a service; return why it cannot be used, empty if it can.

        Args:
            effect: What becomes of the traffic if it cannot.
        """
        result = resolve_service(
            self._view,
            referrer=self._key,
            path=f"{path}.vpcServiceRef.name",
            name=ref.name,
            namespace=ref.namespace,
        )
        if result.finding is not None:
            message = result.finding.message.split(";", 1)[0]
            self._findings.append(msgspec.structs.replace(result.finding, message=f"{message}; {effect}"))
        return result.problem


def filter_findings(rule: Rule, key: ObjectKey, steps: Sequence[int], known: Mapping[str, FilterSpec]) -> list[Finding]:
    """Return what is wrong with the filters of a rule and of its destinations.

    Args:
        steps: Where the rule's filters stand in `spec.filters`.
        known: The filters that plugins add.
    """
    lists: list[tuple[str, Sequence[FilterConfig], Sequence[int]]] = [("spec.filters", rule.filters, steps)]
    lists += [
        (f"spec.destinations[{position}].filters", ref.filters, range(len(ref.filters)))
        for position, ref in enumerate(rule.destinations)
        if ref.filters
    ]
    findings = [
        Finding(key=key, path=f"{path}[{index}]", reason=Reason.INVALID_VALUE, message=problem)
        for path, filters, positions in lists
        for index, config in zip(positions, filters, strict=True)
        if (problem := filter_problem(config, rule))
    ]
    for index, config in zip(steps, rule.filters, strict=True):
        if isinstance(config, PluginFilter):
            findings += _plugin_findings(config, key, f"spec.filters[{index}].plugin", known)
    return findings


def filter_remarks(rule: Rule, key: ObjectKey) -> list[Finding]:
    """Return what filters of the rule's destinations are meant to do and never will, as warnings."""
    put = replaced_prefix_by(rule.filters, rule.match)
    if not put:
        return []
    return [
        Finding(
            key=key,
            path=f"spec.destinations[{position}].filters[{index}].urlRewrite.path",
            reason=Reason.INVALID_VALUE,
            message=f"found a replacement of prefix {rule.match.path.value}, but the URLRewrite in spec.filters has "
            f"put {put} there before: the path stays as it is",
            hint="rewrite the path in each destination and not in spec.filters, or use type: ReplaceFullPath here",
            severity=Severity.WARNING,
        )
        for position, ref in enumerate(rule.destinations)
        for index, config in enumerate(ref.filters)
        if isinstance(config, Rewrite) and config.prefix_path is not None
    ]


def _plugin_findings(
    config: PluginFilter, key: ObjectKey, path: str, known: Mapping[str, FilterSpec]
) -> Iterator[Finding]:
    spec = known.get(config.name)
    if spec is None:
        names = ", ".join(sorted(known)) or "none, since no plugin with filters is installed"
        yield Finding(
            key=key,
            path=f"{path}.name",
            reason=Reason.UNKNOWN_FILTER,
            message=f"found {config.name!r}, expected one of {names}",
            hint=did_you_mean(config.name, known) or "install its plugin, here and in every gateway",
        )
        return
    if spec.service is ServiceUse.REQUIRED and not config.service:
        yield Finding(
            key=key,
            path=f"{path}.vpcServiceRef",
            reason=Reason.MISSING_FIELD,
            message=f"filter {config.name} needs a service to ask",
        )
    if spec.service is ServiceUse.NONE and config.service:
        yield Finding(
            key=key,
            path=f"{path}.vpcServiceRef",
            reason=Reason.MUTUALLY_EXCLUSIVE,
            message=f"filter {config.name} asks nobody",
            hint="remove it",
        )
    try:
        problem = spec.check(config) if spec.check is not None else ""
    except PLUGIN_ERRORS as error:  # one route's settings must not keep all others from being compiled
        problem = f"the check of filter {config.name} raised {type(error).__name__}"
    if problem:
        yield Finding(key=key, path=f"{path}.config", reason=Reason.INVALID_VALUE, message=problem)


def _header_edit(modifier: wire.HeaderModifier, *, is_response: bool) -> HeaderEdit:
    return HeaderEdit(
        is_response=is_response,
        set=tuple((one.name.lower(), one.value) for one in modifier.set),
        add=tuple((one.name.lower(), one.value) for one in modifier.add),
        remove=tuple(name.lower() for name in modifier.remove),
    )


def _redirect(redirect: wire.RequestRedirect) -> Redirect:
    full, prefix = _path_modifier(redirect.path)
    return Redirect(
        scheme=redirect.scheme or "",
        hostname=redirect.hostname or "",
        port=redirect.port,
        full_path=full,
        prefix_path=prefix,
        status=redirect.status_code,
    )


def _path_modifier(path: wire.PathModifier | None) -> tuple[str | None, str | None]:
    if path is None:
        return None, None
    if path.type is wire.PathModifierType.REPLACE_FULL_PATH:
        return path.replace_full_path or "/", None
    return None, path.replace_prefix_match or "/"


def _fault(fault: FaultInjection) -> Fault:
    delay, abort = fault.delay, fault.abort
    return Fault(
        delay_s=parse_duration(delay.duration) if delay is not None else 0.0,
        delay_percent=delay.percent if delay is not None else 0,
        status=(abort.status or 0) if abort is not None else 0,
        grpc_status=abort.grpc_status if abort is not None else None,
        abort_percent=abort.percent if abort is not None else 0,
    )
