"""`datum-router schema`: the custom resource definitions, generated from the types that decode manifests."""

from __future__ import annotations

import click

from datum_router.compiler.diagnostics import did_you_mean
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.schema import crd, crd_yaml
from datum_router_cli.failure import RouterCommand, require
from datum_router_cli.output import print_json


@click.command(cls=RouterCommand)
@click.argument("kind", required=False)
@click.option(
    "--output",
    type=click.Choice(["yaml", "json"]),
    default="yaml",
    show_default=True,
    help="YAML for kubectl, or one JSON document.",
)
def schema(kind: str | None, output: str) -> None:
    """Print the CustomResourceDefinition of KIND, or of all kinds.

    KIND may also be a plural or short name, in any case.

    \b
    Examples:
      datum-router schema VPCRoute
      datum-router schema | kubectl apply -f -
    """
    chosen = [
        row
        for row in OWN_KINDS
        if kind is None or kind.lower() in (row.kind.lower(), row.plural, f"{row.plural}.{row.group}", *row.short_names)
    ]
    names = [row.kind for row in OWN_KINDS]
    hint = did_you_mean(kind or "", names) or f"kinds: {', '.join(names)}"
    require(bool(chosen), f"KIND: found kind {kind!r}, which is none of ours ({hint})")
    if output == "yaml":
        click.echo("---\n".join(crd_yaml(row) for row in chosen), nl=False)
    elif kind is not None:
        print_json(crd(chosen[0]))
    else:
        print_json({"apiVersion": "v1", "kind": "List", "items": [crd(row) for row in chosen]})
