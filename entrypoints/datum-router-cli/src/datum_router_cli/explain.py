"""`datum-router explain`: which rule takes this request, why the others do not, and where it would go."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.console import Console

from datum_router.compiler.diagnostics import Diagnostic
from datum_router.filters.cors import is_preflight
from datum_router.model.endpoint import UNKNOWN_LOCALITY, Locality
from datum_router.model.listener import Listener, ListenerMode
from datum_router.model.request import RequestHead
from datum_router.model.route import Rule
from datum_router.policy.explain import PolicyReport, explain_policy, policy_lines, stream_policy_lines
from datum_router.registry.store import StoreView
from datum_router.routing.explain import CandidateVerdict, Explanation
from datum_router_cli.condition import (
    describe_balancing,
    describe_conditions,
    describe_filters,
    describe_limits,
    redirect_status,
)
from datum_router_cli.conflict import concerning, manifest_of
from datum_router_cli.destination import (
    DestinationReport,
    Down,
    describe_destinations,
    destination_lines,
    left_out_sides,
)
from datum_router_cli.edge import explain_at
from datum_router_cli.egress import ask_about_egress, explain_egress
from datum_router_cli.failure import RouterCommand, require
from datum_router_cli.identity import client_lines, describe_client
from datum_router_cli.listener import choose_listener, describe_listener, serves_host, shed_queue_age_s
from datum_router_cli.load import Loaded, as_check, load_directory
from datum_router_cli.output import make_console, output_option, plural, print_diagnostic, print_json, say
from datum_router_cli.request import DEFAULT_SOURCE_IP, make_request
from datum_router_runtime.app import compile_options
from datum_router_runtime.settings import LOCATION_KEYS, parse_address, parse_pairs, read_place

MAX_SHOWN_LOSERS = 50
"""Losers in text output; JSON output holds all."""


@click.command(cls=RouterCommand, short_help="Say which rule takes a request, and why no other one does.")
@click.argument("directory", metavar="DIR")
@click.argument("method", metavar="METHOD")
@click.argument("url", metavar="URL")
@click.option("-H", "--header", "headers", metavar="'Name: value'", multiple=True, help="A request header; repeatable.")
@click.option("--source-ip", default=DEFAULT_SOURCE_IP, show_default=True, metavar="IP", help="The client's address.")
@click.option(
    "--listener",
    metavar="NAME|PORT",
    help="The listener it arrives at, by name or port. Default: the likeliest for the URL.",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Suppose a gateway that runs with this --listen: it serves all routes there, whatever VPCIngresses ask for.",
)
@click.option(
    "--at",
    default="",
    metavar="NAME=VALUE,...",
    help="Where the gateway is: name, latitude and longitude of its Location, keys of its topology. Default: what "
    "DATUM_ROUTER_LOCATION and DATUM_ROUTER_TOPOLOGY say, else the manifests.",
)
@click.option(
    "--down", multiple=True, metavar="ADDRESS[:PORT][@VPC]", help="An endpoint supposed to be down; repeatable."
)
@click.option("--attachment", default="", metavar="NAMESPACE/NAME", help="The gateway's VPCAttachment it comes in by.")
@click.option("--egress", is_flag=True, help="Ask about outbound traffic: whether VPCEgresses let it go to URL.")
@click.option(
    "--from",
    "source",
    default="",
    metavar="NAMESPACE/NAME",
    help="With --egress: the VPCAttachment it comes from, or NAMESPACE/. Default: that of --source-ip.",
)
@click.option(
    "--address",
    "addresses",
    metavar="IP",
    multiple=True,
    help="With --egress: an address that the name is supposed to have; repeatable. Nothing is looked up.",
)
@output_option
def explain(
    directory: str,
    method: str,
    url: str,
    headers: tuple[str, ...],
    source_ip: str,
    listener: str | None,
    listen: str | None,
    at: str,
    down: tuple[str, ...],
    attachment: str,
    egress: bool,
    source: str,
    addresses: tuple[str, ...],
    output: str,
) -> None:
    """Say which rule of the manifests in DIR takes a request, why each other one does not, and where it would go.

    Nothing is sent, and health is not known: probes run in a gateway; --down supposes it. Exit status 0 also if no rule
    matches (it says `no route: 404`); 2 if the gateway would refuse the request itself, or if the arguments are no
    request.

    \b
    Examples:
      datum-router explain ./manifests GET http://localhost/api/v1/users
      datum-router explain ./manifests GET http://localhost/ --at latitude=50.1,longitude=8.7 --down 10.0.0.1
      datum-router explain ./manifests --egress --from default/prod-vpc CONNECT api.example.com:443
      datum-router explain ./manifests POST https://shop.example.com/cart -H 'X-Tenant: blue' --source-ip 10.1.2.3
    """
    if egress:
        asked = ask_about_egress(method, url)
        report = explain_egress(
            load_directory(directory), asked, source=source or attachment, source_ip=source_ip, addresses=addresses
        )
        if output == "json":
            print_json(report.document())
        else:
            report.print(make_console())
        return
    require(
        not source and not addresses, "--from and --address: they are about outbound traffic, expected --egress too"
    )
    head = make_request(method, url, headers=headers, source_ip=source_ip)
    place = gateway_place(at)
    loaded = load_directory(directory, listen=None if listen is None else parse_address(listen, name="--listen"))
    chosen = choose_listener(loaded.data.listeners, head, listener)
    head = make_request(
        method,
        url,
        headers=headers,
        source_ip=source_ip,
        listener=chosen.name if chosen is not None else "",
        attachment=attachment,
    )
    is_served = chosen is None or serves_host(chosen, head.host)
    rules = loaded.data.rules if is_served else ()
    head, found = explain_at(chosen, rules, head, compile_options(loaded.settings).regex)
    health, gateway, services = Down(down), place or placed(loaded), loaded.data.services
    unknown = health.unknown(services.values())
    require(not unknown, f"--down: found {', '.join(unknown)}, expected an endpoint of a service in {directory}")
    answer = Answer(
        head=head,
        listener=chosen,
        is_served=is_served,
        rules=rules,
        found=found,
        destinations=describe_destinations(found.winner, services, gateway=gateway, health=health)
        if found.winner is not None
        else [],
        sides=left_out_sides(found.winner, services, gateway=gateway, health=health)
        if found.winner is not None
        else [],
        diagnostics=concerning(
            as_check(loaded.diagnostics, is_strict=False),
            loaded.view,
            route=None if found.winner is None else found.winner.route,
            listener=chosen,
            host=head.host,
        ),
        view=loaded.view,
        shed_s=shed_queue_age_s(loaded.settings.data_plane_config),
    )
    if output == "json":
        print_json(answer.document())
    else:
        answer.print(make_console())


def gateway_place(text: str) -> Locality | None:
    """Read `--at`, None if it is empty.

    Raises:
        ConfigError: It names no place.
    """
    if not text:
        return None
    pairs = parse_pairs(text, "--at", "name=iad-1,latitude=38.9445,longitude=-77.4558")
    location = {key: value for key, value in pairs.items() if key in LOCATION_KEYS}
    return read_place({key: value for key, value in pairs.items() if key not in location}, location, name="--at")


def placed(loaded: Loaded) -> Locality:
    """Return where a gateway with these settings and manifests would be."""
    named = read_place(loaded.settings.topology, loaded.settings.location)
    return named if named != UNKNOWN_LOCALITY else loaded.data.place


class Answer:
    """What is to be said about one request."""

    __slots__ = (
        "_at_listener",
        "_client",
        "_destinations",
        "_diagnostics",
        "_found",
        "_head",
        "_is_served",
        "_listener",
        "_rules",
        "_sides",
        "_view",
    )

    def __init__(
        self,
        *,
        head: RequestHead,
        listener: Listener | None,
        is_served: bool,
        rules: Sequence[Rule],
        found: Explanation,
        destinations: list[DestinationReport],
        sides: list[str],
        diagnostics: list[Diagnostic],
        view: StoreView,
        shed_s: float,
    ) -> None:
        self._head = head
        self._listener = listener
        self._is_served = is_served
        self._rules = {rule.id: rule for rule in rules}
        self._found = found
        self._at_listener = describe_listener(listener, head.host, shed_s=shed_s)
        self._client = describe_client(listener, head.host, found.winner)
        self._destinations = destinations
        self._sides = sides
        self._diagnostics = diagnostics
        self._view = view

    def outcome(self) -> tuple[str, int | None]:
        """Return `routed`, or `redirected`, `preflight`, `no_route` or `misdirected` with the router's own status."""
        winner = self._found.winner
        if winner is None:
            if self._carries_bytes():
                return ("no_route", None)
            is_misdirected = not self._is_served and self._listener is not None and bool(self._listener.tls)
            return ("misdirected", 421) if is_misdirected else ("no_route", 404)
        if self._client is not None and not self._client.is_admitted:
            return "misdirected", 421
        status = redirect_status(winner)
        if winner.cors is not None and is_preflight(self._head):
            return ("preflight", 204)
        return ("redirected", status) if status is not None else ("routed", None)

    def _carries_bytes(self) -> bool:
        return self._listener is not None and self._listener.mode is not ListenerMode.HTTP

    def place(self, rule: Rule) -> tuple[str, int]:
        """Return file and line of the manifest that a rule came from."""
        origin = self._view.origin(manifest_of(rule.route))
        return (origin.file, origin.line) if origin is not None else ("", 0)

    def document(self) -> dict[str, object]:
        """Return the answer as one JSON document."""
        head, winner = self._head, self._found.winner
        outcome, status = self.outcome()
        return {
            "request": {
                "method": head.method,
                "scheme": head.scheme,
                "host": head.host,
                "path": head.path,
                "query": head.query,
                "source_ip": head.client_ip,
                "listener": head.listener,
                "attachment": head.attachment,
            },
            "at_listener": self._at_listener,
            "client_certificate": self._client,
            "outcome": outcome,
            "status": status,
            "winner": self._rule(winner) if winner is not None else None,
            "destinations": self._destinations,
            "left_out_filter_services": self._sides,
            "policy": self._policy(winner)
            if winner is not None and status is None and not self._carries_bytes()
            else None,
            "losers": [
                {
                    **self._rule(self._rules[loser.rule_id]),
                    "matches": loser.is_match,
                    "failed": loser.failed,
                    "expected": loser.expected,
                    "found": loser.found,
                    "lost_because": loser.lost_because,
                }
                for loser in self._losers()
            ],
            "diagnostics": self._diagnostics,
        }

    def _rule(self, rule: Rule) -> dict[str, object]:
        file, line = self.place(rule)
        return {
            "rule": rule.id,
            "route": rule.route,
            "file": file,
            "line": line,
            "conditions": describe_conditions(rule),
            "filters": describe_filters(rule),
            "limits": self._limits(rule),
            "balancing": describe_balancing(rule.balancing, rule.locality),
        }

    def _policy(self, rule: Rule) -> PolicyReport:
        return explain_policy(rule.retry, rule.timeouts, self._head.method, has_sessions=rule.affinity is not None)

    def _limits(self, rule: Rule) -> list[str]:
        return describe_limits(rule, self._listener, self._head.host)

    def print(self, console: Console) -> None:
        """Print the answer for people."""
        for diagnostic in self._diagnostics:
            print_diagnostic(console, diagnostic)
        head, winner = self._head, self._found.winner
        at = f" at listener {head.listener}" if head.listener else ""
        at += f" by attachment {head.attachment}" if head.attachment else ""
        asked = f"{head.method} {head.scheme}://{head.authority}{head.target}" if head.method else f"{head.host}, bytes"
        say(console, f"{asked} from {head.client_ip}{at}", "bold")
        outcome, status = self.outcome()
        for line in self._at_listener:
            say(console, f"listener: {line}")
        if self._client is not None:
            for line in client_lines(self._client):
                say(console, line)
        if winner is None:
            why = ""
            if self._listener is not None and not self._is_served:
                served = ", ".join(self._listener.hostnames)
                why = f" (listener {self._listener.name} does not serve host {head.host}, it serves {served})"
            say(console, f"no route: {status or 'the connection is closed'}{why}", "bold red")
        else:
            say(console, f"winner: {winner.id}{self._shown_place(winner)}", "bold green")
            for line in (*describe_conditions(winner), *self._limits(winner), *describe_filters(winner)):
                say(console, f"    {line}")
            if outcome in ("redirected", "preflight"):
                say(console, f"answered by the router: {status}")
            else:
                self._print_destinations(console, winner)
        self._print_losers(console)

    def _print_destinations(self, console: Console, winner: Rule) -> None:
        say(console, f"destinations ({describe_balancing(winner.balancing, winner.locality)}):")
        if len({report.priority for report in self._destinations}) > 1:
            say(console, "    the lowest priority with a usable endpoint takes all; shares are within a priority")
        for line in destination_lines(self._destinations):
            say(console, f"    {line}")
        for line in self._sides:
            say(console, f"    {line}", "red")
        if not any(report.weight for report in self._destinations):
            say(console, "    none has a weight above 0: answered with 503", "red")
        lines = (
            stream_policy_lines(winner.retry, winner.timeouts)
            if self._carries_bytes()
            else policy_lines(self._policy(winner))
        )
        for line in lines:
            say(console, line)

    def _losers(self) -> list[CandidateVerdict]:
        return [candidate for candidate in self._found.candidates if not candidate.is_winner]

    def _print_losers(self, console: Console) -> None:
        losers = self._losers()
        if losers:
            say(console, "lost:")
        for loser in losers[:MAX_SHOWN_LOSERS]:
            say(console, f"    {loser.rule_id}{self._shown_place(self._rules[loser.rule_id])}")
            reason = loser.lost_because or f"{loser.failed}: expected {loser.expected}, found {loser.found}"
            say(console, f"        {reason}")
        if len(losers) > MAX_SHOWN_LOSERS:
            say(console, f"    and {plural(len(losers) - MAX_SHOWN_LOSERS, 'rule')} more: see --output json")

    def _shown_place(self, rule: Rule) -> str:
        file, line = self.place(rule)
        return f" ({file}:{line})" if file else ""
