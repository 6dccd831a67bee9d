"""`datum-router get clusters`: how the clusters stand that discovery has joined."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click
import msgspec
import trio

from datum_router.discovery.report import CLUSTER_LABELS, ClusterReport, read_record
from datum_router.errors import ConfigError
from datum_router.plugins.cluster import Cluster, LeaseRecord
from datum_router.reasons import Reason
from datum_router.reconcile.conditions import timestamp
from datum_router_cli.failure import RouterCommand
from datum_router_cli.output import make_console, output_option, print_json, print_table, printable, say
from datum_router_cli.plugins import installed_plugins

CLUSTER = "kubernetes"
LEADER = "router-discovery"
"""Lease by which one of several daemons leads."""
CLOCKS_DIFFER_S = 60.0
"""How much the daemon's clock may differ from ours (seconds)."""


@click.command(cls=RouterCommand, short_help="Show how the clusters stand that discovery has joined.")
@click.argument("what", metavar="clusters", type=click.Choice(["clusters"]))
@click.argument("name", metavar="[NAME]", required=False)
@click.option(
    "-n", "--namespace", default="datum-router", show_default=True, help="Where discovery and its Secrets are."
)
@click.option("--kubeconfig", help="Default: KUBECONFIG, else ~/.kube/config, else as the Pod this runs in.")
@click.option("--context", help="Context of the kubeconfig. Default: the current one.")
@output_option
def get(what: str, name: str | None, namespace: str, kubeconfig: str | None, context: str | None, output: str) -> None:
    """Show how the clusters stand that discovery has joined, or with NAME all conditions of one.

    They are read from the Leases that router-discovery keeps beside the clusters' Secrets, of which `kubectl get leases
    -l router.datum.net/component=remote-cluster` shows the same. REASON and MESSAGE are of the first condition that is
    not as it should be. If no router-discovery keeps them, that is said on standard error. Exit status 0 whatever they
    say; 2: there is no cluster NAME; 1: anything else.

    \b
    Example:
      datum-router get clusters
    """
    spec = installed_plugins().clusters.get(CLUSTER)
    if spec is None:
        raise ConfigError(f"plugin {CLUSTER!r} is not installed: install datum-router-kubernetes")
    settings = {"role": "cli"}
    settings |= {"kubeconfig": kubeconfig} if kubeconfig else {}
    settings |= {"context": context} if context else {}
    reports, leader = trio.run(_read, spec.create(settings), namespace)
    stopped = _stopped(leader, namespace, now=time.time())
    if stopped:
        click.echo(f"datum-router: warning: {printable(stopped)}", err=True)
    if name is not None:
        reports = [one for one in reports if one.name == name]
        if not reports:
            raise ConfigError(
                f"cluster {name}: discovery has told nothing of it in namespace {namespace}; expected the name of a "
                "Secret there with the label router.datum.net/remote-cluster=true, while router-discovery runs",
                reason=Reason.INVALID_VALUE,
            )
    if output == "json":
        print_json({"discovery": stopped or "running", "clusters": [_plain(one) for one in reports]})
    elif name is not None:
        _print_one(reports[0])
    elif reports:
        _print_all(reports)
    else:
        say(make_console(), f"no cluster is joined in namespace {namespace}")


async def _read(cluster: Cluster, namespace: str) -> tuple[list[ClusterReport], LeaseRecord | None]:
    found = await cluster.list_leases(namespace, labels=CLUSTER_LABELS)
    reports = [report for report in map(read_record, found) if report is not None]
    return sorted(reports, key=lambda one: one.name), await cluster.read_lease(namespace, LEADER)


def _stopped(leader: LeaseRecord | None, namespace: str, *, now: float) -> str:
    """Return how it is seen that nobody keeps the reports; empty if somebody does. now in Unix seconds."""
    last = "what is shown is what it said last"
    if leader is None:
        return f"router-discovery has not run yet in namespace {namespace}: it has no lease {LEADER}; {last}"
    if not leader.holder or now - leader.renewed_at > leader.duration_s + CLOCKS_DIFFER_S:
        return f"router-discovery does not run in namespace {namespace} since {timestamp(leader.renewed_at)}; {last}"
    return ""


def _plain(report: ClusterReport) -> dict[str, object]:
    return {
        "name": report.name,
        "services": report.exports,
        "slices": report.slices,
        "id": report.id,
        "observedResourceVersion": report.version,
        "conditions": msgspec.to_builtins(report.conditions),
    }


def _print_all(reports: Sequence[ClusterReport]) -> None:
    rows = []
    for one in reports:
        status = {each.type: each.status for each in one.conditions}
        trouble = one.trouble
        rows.append(
            [
                one.name,
                status.get("Ready", "Unknown"),
                status.get("Stale", "Unknown"),
                str(one.exports),
                str(one.slices),
                str(Reason.READY) if trouble is None else trouble.reason,
                "" if trouble is None else trouble.message,
            ]
        )
    print_table(make_console(), ["NAME", "READY", "STALE", "SERVICES", "SLICES", "REASON", "MESSAGE"], rows)


def _print_one(report: ClusterReport) -> None:
    rows = [[one.type, one.status, one.reason, one.last_transition_time, one.message] for one in report.conditions]
    print_table(make_console(), ["CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"], rows)
