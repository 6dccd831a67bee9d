"""`datum-router apply`: bring a directory of manifests to a cluster, and wait until it is in force everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import click
import msgspec
import trio

from datum_router.compiler.diagnostics import Diagnostic, Origin, Severity
from datum_router.errors import ClusterConflict, ClusterError, ClusterRejected, ConfigError
from datum_router.manifests.meta import GROUP, ObjectKey, parse_duration
from datum_router.manifests.table import KindTable, ResourceKind
from datum_router.plugins.cluster import Applied, Cluster
from datum_router.plugins.protocols import Upsert
from datum_router.reasons import Reason
from datum_router_cli.failure import EXIT_BAD_INPUT, EXIT_GOOD, EXIT_OTHER, RouterCommand, exit_with, require
from datum_router_cli.load import Loaded, as_check, load_directory
from datum_router_cli.output import make_console, output_option, plural, print_diagnostic, print_json, print_table, say
from datum_router_cli.rollout import GatewayRow, Progress, State, Target, gateways, wait_until_in_force

MANAGER = "datum-router-apply"
"""Field manager of what is applied: fields that other managers own are a conflict unless `--force-conflicts`."""
CLUSTER = "kubernetes"
WRITES_PER_S = "200"
"""Objects are applied at most so fast."""


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """An object to apply, and where it stands."""

    kind: ResourceKind
    key: ObjectKey
    raw: dict[str, object]
    origin: Origin


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one object, for `--output json`."""

    object: str
    result: str
    generation: int = 0
    message: str = ""


@click.command(cls=RouterCommand, short_help="Apply the manifests in DIR to a cluster, and wait until in force.")
@click.option(
    "-f", "--filename", "directory", metavar="DIR", required=True, help="Directory of manifests, or one file."
)
@click.option("--wait", "is_waiting", is_flag=True, help="Return when every gateway has it in force, or say where not.")
@click.option("--timeout", default="60s", show_default=True, metavar="DURATION", help="How long --wait waits.")
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Have the API check everything, and change nothing.")
@click.option("--force-conflicts", is_flag=True, help="Take over fields that other managers own.")
@click.option("-n", "--namespace", help="For objects that name none. Default: that of the context.")
@click.option("--kubeconfig", help="Default: KUBECONFIG, else ~/.kube/config, else as the Pod this runs in.")
@click.option("--context", help="Context of the kubeconfig. Default: the current one.")
@click.option(
    "--gateways",
    "gateways_in",
    default="datum-router",
    show_default=True,
    metavar="NAMESPACE",
    help="Where gateways report, for saying which of them lags behind.",
)
@output_option
def apply(
    directory: str,
    is_waiting: bool,
    timeout: str,
    is_dry_run: bool,
    force_conflicts: bool,
    namespace: str | None,
    kubeconfig: str | None,
    context: str | None,
    gateways_in: str,
    output: str,
) -> None:
    """Apply the manifests in DIR to a cluster (server-side), after the same check as `datum-router check`.

    Objects of kinds that the router does not know are left to kubectl, and named. With --wait it returns when the
    router-controller says that every gateway has every object in force, or after --timeout says which object is
    missing where. Exit status 0: applied (and in force); 2: manifests that are refused; 1: anything else, such as a
    gateway that has not followed in time.

    \b
    Example:
      datum-router apply -f ./manifests --wait --timeout 30s
    """
    timeout_s = _seconds(timeout)
    require(not (is_waiting and is_dry_run), "--wait: found beside --dry-run, which brings nothing into force")
    loaded = load_directory(directory)
    _refuse_errors(loaded, output)
    settings = {"role": "cli", "writeQps": WRITES_PER_S, "writeBurst": WRITES_PER_S}
    settings |= {"kubeconfig": kubeconfig} if kubeconfig else {}
    settings |= {"context": context} if context else {}
    spec = loaded.plugins.clusters.get(CLUSTER)
    if spec is None:
        raise ConfigError(f"plugin {CLUSTER!r} is not installed: install datum-router-kubernetes")
    cluster = spec.create(settings)
    items, left_out = order(loaded.upserts, loaded.plugins.kinds, namespace or cluster.namespace)
    run = _Run(cluster, output, is_dry_run=is_dry_run, is_forced=force_conflicts)
    trio.run(run.apply, items)
    waited: list[Progress] = []
    rows: list[GatewayRow] = []
    if is_waiting and not run.failures:
        waited, rows = trio.run(run.wait, timeout_s, gateways_in)
    late = [progress for progress in waited if progress.state is not State.IN_FORCE]
    if output == "json":
        print_json(
            {
                "ok": not run.failures and not late,
                "objects": run.outcomes,
                "leftToKubectl": left_out,
                "notInForce": [{"object": str(one.target.key), "state": one.state, "why": one.why} for one in late],
                "incomplete": [
                    {"object": str(one.target.key), "why": one.why}
                    for one in waited
                    if one.state is State.IN_FORCE and one.why
                ],
                "gateways": rows,
                "diagnostics": run.failures,
            }
        )
    else:
        _summarise(run, left_out, late, rows, timeout, is_waiting=is_waiting)
    if run.failures or any(one.state is State.REFUSED for one in late):
        exit_with(EXIT_BAD_INPUT)
    exit_with(EXIT_OTHER if late or run.errors else EXIT_GOOD)


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ConfigError(f"--timeout: {error}", reason=Reason.INVALID_VALUE) from error


def _refuse_errors(loaded: Loaded, output: str) -> None:
    errors = [one for one in as_check(loaded.diagnostics, is_strict=False) if one.severity is Severity.ERROR]
    if not errors:
        return
    if output == "json":
        print_json({"ok": False, "objects": [], "diagnostics": errors})
    else:
        console = make_console()
        for one in errors:
            print_diagnostic(console, one)
        say(console, f"nothing was applied: {plural(len(errors), 'error')}", "bold red")
    exit_with(EXIT_BAD_INPUT)


def order(upserts: Sequence[Upsert], kinds: KindTable, namespace: str) -> tuple[list[Item], list[str]]:
    """Return what can be applied, what is referred to before what refers to it, and the names of what cannot."""
    items: list[Item] = []
    left_out: list[str] = []
    for event in upserts:
        raw = event.raw
        if not isinstance(raw, dict):
            continue
        api_version, kind_name, metadata = raw.get("apiVersion"), raw.get("kind"), raw.get("metadata")
        if not isinstance(metadata, dict):
            continue
        kind = kinds.get(str(api_version), str(kind_name))
        name = str(metadata.get("name", ""))
        if kind is None:
            left_out.append(f"{str(kind_name).lower()} {name}")
            continue
        given = str(metadata.get("namespace") or "")
        there = kind.namespace_of(given or namespace) if kind.namespaced else kind.namespace_of(given)
        meta = {**metadata, "namespace": there} if there else metadata
        body = {key: value for key, value in raw.items() if not (key == "status" and kind.is_status_ours)}
        items.append(
            Item(
                kind=kind,
                key=ObjectKey(kind=kind.kind, namespace=there, name=name),
                raw={**body, "metadata": meta},
                origin=event.origin,
            )
        )
    ranks = {"Namespace": -1, "VPCService": 1, "ServiceBinding": 2, "VPCIngress": 3, "VPCRoute": 4, "VPCEgress": 5}
    items.sort(key=lambda item: ranks.get(item.kind.kind, 0))
    return items, left_out


class _Run:
    """One run of the command against a cluster.

    Attributes:
        failures: Objects that the API refused, as diagnostics at their place.
        errors: What else went wrong.
    """

    def __init__(self, cluster: Cluster, output: str, *, is_dry_run: bool, is_forced: bool) -> None:
        self._cluster = cluster
        self._is_text = output == "text"
        self._console = make_console()
        self._is_dry_run = is_dry_run
        self._is_forced = is_forced
        self.outcomes: list[Outcome] = []
        self.targets: list[Target] = []
        self.failures: list[Diagnostic] = []
        self.errors: list[str] = []

    async def apply(self, items: Sequence[Item]) -> None:
        """Apply all objects; one that is refused does not keep the others back."""
        for item in items:
            try:
                applied = await self._cluster.apply(
                    item.raw,
                    plural=item.kind.plural,
                    manager=MANAGER,
                    is_forced=self._is_forced,
                    is_dry_run=self._is_dry_run,
                )
            except ClusterRejected as error:
                causes = error.causes or (("", str(error)),)
                self._fail(item, [_diagnostic(item, path, message, Reason.INVALID_VALUE) for path, message in causes])
            except ClusterConflict as error:
                hint = "--force-conflicts takes the fields over"
                self._fail(item, [_diagnostic(item, "", str(error), Reason.CONFLICTED, hint)])
            except ClusterError as error:
                self.outcomes.append(Outcome(object=str(item.key), result="failed", message=str(error)))
                self.errors.append(f"{item.key}: {error}")
                if error.status == 0:
                    break  # nobody answers: the next one would wait as long for nothing
            else:
                self._done(item, applied)

    def _done(self, item: Item, applied: Applied) -> None:
        result = "applied" if applied.is_changed else "unchanged"
        if self._is_dry_run:
            result += " (dry run)"
        self._note(Outcome(object=str(item.key), result=result, generation=applied.generation), "")
        if item.kind.group == GROUP and not self._is_dry_run:
            self.targets.append(
                Target(kind=item.kind, key=item.key, generation=applied.generation, version=applied.version)
            )

    def _fail(self, item: Item, found: list[Diagnostic]) -> None:
        self.failures += found
        self.outcomes.append(Outcome(object=str(item.key), result="refused", message=found[0].message))
        if self._is_text:
            for one in found:
                print_diagnostic(self._console, one)

    def _note(self, outcome: Outcome, style: str) -> None:
        self.outcomes.append(outcome)
        if self._is_text:
            say(self._console, f"{outcome.object}: {outcome.result} {outcome.message}".rstrip(), style)

    async def wait(self, timeout_s: float, gateways_in: str) -> tuple[list[Progress], list[GatewayRow]]:
        """Wait for what was applied; return how far each object came, and the gateways if some are not there."""
        if self._is_text and self.targets:
            say(self._console, f"waiting for {plural(len(self.targets), 'object')} to be in force everywhere", "cyan")
        found = await wait_until_in_force(self._cluster, self.targets, timeout_s=timeout_s, report=self._report)
        if all(one.state is State.IN_FORCE for one in found):
            return found, []
        try:
            return found, await gateways(self._cluster, gateways_in, self.targets)
        except ClusterError as error:
            self.errors.append(f"gateways' reports cannot be read: {error}")
            return found, []

    def _report(self, progress: Progress) -> None:
        if self._is_text:
            is_good = progress.state is State.IN_FORCE
            joint = ", but " if is_good else ": "
            text = f"{progress.target.key}: {progress.state}" + (f"{joint}{progress.why}" if progress.why else "")
            say(self._console, text, ("yellow" if progress.why else "") if is_good else "bold red")


def _diagnostic(item: Item, path: str, message: str, reason: Reason, hint: str = "") -> Diagnostic:
    return Diagnostic(
        severity=Severity.ERROR,
        object=str(item.key),
        path=path,
        reason=reason,
        message=message,
        hint=hint,
        file=item.origin.file,
        line=item.origin.locate(path),
    )


def _summarise(
    run: _Run,
    left_out: Sequence[str],
    late: Sequence[Progress],
    rows: Sequence[GatewayRow],
    timeout: str,
    *,
    is_waiting: bool,
) -> None:
    console = make_console()
    for name in left_out:
        say(console, f"{name}: left to kubectl (the router does not know this kind)", "yellow")
    waiting = [one for one in late if one.state is State.WAITING]
    if waiting:
        say(console, f"not in force everywhere after {timeout}:", "bold red")
        print_table(console, ["object", "why"], [[str(one.target.key), one.why] for one in waiting])
    if late:
        if rows:
            cells = [[row.gateway, row.digest[:12], ", ".join(row.missing) or "none", row.problem] for row in rows]
            print_table(console, ["gateway", "digest in force", "not in force there", "problem"], cells)
        else:
            say(console, "no gateway reports; is a gateway running with DATUM_ROUTER_SOURCE=kubernetes?", "yellow")
    for error in run.errors:
        say(console, f"error: {error}", "bold red")
    if run.failures or run.errors:
        say(console, f"bad: {plural(len(run.failures) + len(run.errors), 'error')}", "bold red")
    elif not late:
        where = " and in force everywhere" if is_waiting else ""
        say(console, f"good: {plural(len(run.outcomes), 'object')} applied{where}", "bold green")
