"""`datum-router explain`: which rule takes this request, why the others do not, and where it would go."""

from __future__ import annotations

import click

from datum_router.compiler.diagnostics import Severity
from datum_router.routing.explain import explain_match
from datum_router.routing.regex import load_engine
from datum_router_cli.destination import describe_destinations
from datum_router_cli.failure import RouterCommand
from datum_router_cli.listener import choose_listener, serves_host
from datum_router_cli.load import as_check, load_directory
from datum_router_cli.output import make_console, output_option, print_json
from datum_router_cli.request import DEFAULT_SOURCE_IP, make_request


@click.command(cls=RouterCommand)
@click.argument("directory", metavar="DIR")
@click.argument("method", metavar="METHOD")
@click.argument("url", metavar="URL")
@click.option("-H", "--header", "headers", metavar="'Name: value'", multiple=True, help="A request header; repeatable.")
@click.option("--source-ip", default=DEFAULT_SOURCE_IP, show_default=True, metavar="IP", help="The client's address.")
@click.option("--listener", metavar="NAME", help="The listener it arrives at. Default: the likeliest for the URL.")
@output_option
def explain(
    directory: str,
    method: str,
    url: str,
    headers: tuple[str, ...],
    source_ip: str,
    listener: str | None,
    output: str,
) -> None:
    """Say which rule of the manifests in DIR takes a request, why each other one does not, and where it would go.

    Nothing is sent, and health is not known: probes run in a gateway. Exit status 0 also if no rule matches (it says
    `no route: 404`); 2 if the gateway would refuse the request itself, or if the arguments are no request.

    \b
    Examples:
      datum-router explain ./manifests GET http://localhost/api/v1/users
      datum-router explain ./manifests POST https://shop.example.com/cart -H 'X-Tenant: blue' --source-ip 10.1.2.3
    """
    head = make_request(method, url, headers=headers, source_ip=source_ip)
    loaded = load_directory(directory)
    chosen = choose_listener(loaded.data.listeners, head, listener)
    head = make_request(
        method, url, headers=headers, source_ip=source_ip, listener=chosen.name if chosen is not None else ""
    )
    rules = loaded.data.rules if chosen is None or serves_host(chosen, head.host) else ()
    found = explain_match(rules, head, load_engine())
    winner = found.winner
    destinations = describe_destinations(winner, loaded.data.services) if winner is not None else []
    diagnostics = [item for item in as_check(loaded.diagnostics, is_strict=False) if item.severity is Severity.ERROR]
    if output == "json":
        print_json(as_document(head, chosen, found, destinations, diagnostics, loaded.view))
    else:
        print_text(make_console(), head, chosen, found, destinations, diagnostics, loaded.view)
