"""`datum-router check`: is this directory good?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from datum_router.compiler.diagnostics import Diagnostic, Severity
from datum_router_cli.failure import EXIT_BAD_INPUT, EXIT_GOOD, RouterCommand, exit_with
from datum_router_cli.load import as_check, load_directory
from datum_router_cli.output import make_console, output_option, plural, print_diagnostic, print_json, say


@click.command(cls=RouterCommand, short_help="Print everything that is wrong with the manifests in DIR.")
@click.argument("directory", metavar="DIR")
@click.option("--strict", is_flag=True, help="References to objects that DIR does not hold are errors, not warnings.")
@output_option
def check(directory: str, strict: bool, output: str) -> None:
    """Check the manifests in DIR and print everything that is wrong with them.

    Exit status 0: good; 2: errors, or DIR cannot be read.

    \b
    Example:
      datum-router check ./manifests --strict
    """
    loaded = load_directory(directory)
    diagnostics = as_check(loaded.diagnostics, is_strict=strict)
    errors = count_severity(diagnostics, Severity.ERROR)
    warnings = count_severity(diagnostics, Severity.WARNING)
    if output == "json":
        print_json(
            {
                "directory": directory,
                "ok": errors == 0,
                "strict": strict,
                "errors": errors,
                "warnings": warnings,
                "objects": loaded.objects,
                "diagnostics": diagnostics,
            }
        )
    else:
        console = make_console()
        for diagnostic in diagnostics:
            print_diagnostic(console, diagnostic)
        say(console, summary(loaded.objects, errors, warnings), "bold red" if errors else "bold green")
    exit_with(EXIT_BAD_INPUT if errors else EXIT_GOOD)


def count_severity(diagnostics: Sequence[Diagnostic], severity: Severity) -> int:
    """Return how many diagnostics have `severity`."""
    return sum(diagnostic.severity is severity for diagnostic in diagnostics)


def summary(objects: Mapping[str, int], errors: int, warnings: int) -> str:
    """Return the last line: verdict, counts, and how many objects of each kind are in force."""
    held = ", ".join(f"{count} {kind}" for kind, count in objects.items())
    held = held or "no objects (manifests are files named *.yaml, *.yml or *.json below DIR)"
    verdict = "bad" if errors else "good"
    return f"{verdict}: {plural(errors, 'error')}, {plural(warnings, 'warning')}; in force: {held}"
