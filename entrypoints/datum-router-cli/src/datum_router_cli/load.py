"""Load a directory once: source -> store -> compiler, as a gateway does, without serving."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

import msgspec
import trio

from datum_router.compiler.compiler import Compiler
from datum_router.compiler.diagnostics import Diagnostic, Severity
from datum_router.compiler.expiry import ExpiryBook, expiry_diagnostics, owner_of
from datum_router.model.snapshot import SnapshotData
from datum_router.plugins.manager import PluginSet
from datum_router.plugins.protocols import Source, SourceEvent, Synced, Upsert
from datum_router.registry.store import Store, StoreView
from datum_router_cli.plugins import installed_plugins
from datum_router_runtime.app import compile_options
from datum_router_runtime.ownfiles import own_sources
from datum_router_runtime.process import make_source
from datum_router_runtime.settings import Address, GatewaySettings, settings_from_environment


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """A directory as a gateway would see it.

    Attributes:
        diagnostics: In order of file and line.
        objects: Kind -> number of objects in force, for kinds that have any.
        upserts: What the directory holds, as it was read.
    """

    view: StoreView
    data: SnapshotData
    diagnostics: tuple[Diagnostic, ...]
    objects: Mapping[str, int]
    plugins: PluginSet
    settings: GatewaySettings
    upserts: tuple[Upsert, ...] = ()


def load_directory(path: str, *, plugins: PluginSet | None = None, listen: Address | None = None) -> Loaded:
    """Read `path` once through the `files` source and compile it.

    Args:
        listen: As of a gateway that is told to listen there, in place of what VPCIngresses ask for.

    Raises:
        ConfigError: The source is not installed, or an environment variable cannot be used.
        SourceError: The directory is not there or cannot be read.
    """
    settings = msgspec.structs.replace(
        GatewaySettings(source="files", source_config={"path": path}, listen=listen),
        **settings_from_environment(os.environ),
    )
    if plugins is None:
        plugins = installed_plugins()
    store = Store(plugins.kinds)
    source = make_source(settings.source, settings.source_config, plugins, settings.disabled_plugins)
    events = trio.run(_read_once, source)
    for own in own_sources(settings).values():
        events += trio.run(_read_once, own)
    for event in events:
        store.apply(event)
    view = store.view()
    # Without labels it is no gateway in particular, so that all VPCIngresses are looked at.
    # Nor is it a directory's business where outbound traffic passes.
    options = msgspec.structs.replace(
        compile_options(settings), gateway_labels=settings.labels or None, egress_listeners=None
    )
    result = Compiler(plugins, options).compile(view)
    expiring = expiry_diagnostics(ExpiryBook().look(result.data), now=time.time())
    return Loaded(
        view=view,
        data=result.data,
        diagnostics=tuple(sorted((*result.diagnostics, *(_located(one, view) for one in expiring)), key=_place)),
        objects=_count(view, plugins),
        plugins=plugins,
        settings=settings,
        upserts=tuple(event for event in events if isinstance(event, Upsert)),
    )


async def _read_once(source: Source) -> list[SourceEvent]:
    """Run `source` until it has said `Synced`; return what it said before."""
    events: list[SourceEvent] = []
    with trio.CancelScope() as scope:

        def emit(batch: Sequence[SourceEvent]) -> None:
            events.extend(event for event in batch if not isinstance(event, Synced))
            if any(isinstance(event, Synced) for event in batch):
                scope.cancel()

        await source.run(emit)
    return events


def _located(diagnostic: Diagnostic, view: StoreView) -> Diagnostic:
    """Return what is said of a certificate with file and line of who names it."""
    origin = view.origin(owner_of(diagnostic))
    if origin is None:
        return diagnostic
    return msgspec.structs.replace(diagnostic, file=origin.file, line=origin.locate(diagnostic.path))


def _place(diagnostic: Diagnostic) -> tuple[str, int, str, str]:
    return diagnostic.file, diagnostic.line, diagnostic.object, diagnostic.path


def _count(view: StoreView, plugins: PluginSet) -> dict[str, int]:
    counted = {kind.kind: len(view.list(kind.kind)) for kind in plugins.kinds}
    return {kind: count for kind, count in sorted(counted.items()) if count}


def as_check(diagnostics: Sequence[Diagnostic], *, is_strict: bool) -> list[Diagnostic]:
    """Return the diagnostics with missing references as warnings, or as errors if `is_strict`.

    A directory often holds one part of a configuration; what it refers to may come from elsewhere.
    """
    severity = Severity.ERROR if is_strict else Severity.WARNING
    return [
        msgspec.structs.replace(diagnostic, severity=severity)
        if diagnostic.is_reference and diagnostic.severity is not Severity.INFO
        else diagnostic
        for diagnostic in diagnostics
    ]
