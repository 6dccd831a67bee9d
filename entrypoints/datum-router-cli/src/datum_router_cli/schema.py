"""`datum-router schema`: the custom resource definitions, generated from the types that decode manifests."""

from __future__ import annotations

import click

from datum_router_cli.failure import RouterCommand


@click.command(cls=RouterCommand)
@click.argument("kind", required=False)
@click.option(
    "--output",
    type=click.Choice(["yaml", "json"]),
    default="yaml",
    show_default=True,
    help="YAML for kubectl, or JSON.",
)
def schema(kind: str | None, output: str) -> None:
    """Print the CustomResourceDefinition of KIND, or of all kinds.

    \b
    Examples:
      datum-router schema VPCRoute
      datum-router schema | kubectl apply -f -
    """
