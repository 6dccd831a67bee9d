"""`datum-router diff`: what would change if this directory took that one's place?"""

from __future__ import annotations

import click
import msgspec

from datum_router.compiler.diagnostics import Severity, has_errors
from datum_router.compiler.diff import Change, describe_changes
from datum_router_cli.failure import EXIT_BAD_INPUT, EXIT_GOOD, RouterCommand, exit_with
from datum_router_cli.load import Loaded, as_check, load_directory
from datum_router_cli.output import make_console, output_option, plural, print_diagnostic, print_json, say

SIGNS = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}


@click.command(cls=RouterCommand, short_help="Show what changes for traffic from directory OLD to NEW.")
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@output_option
def diff(old: str, new: str, output: str) -> None:
    """Show what changes for traffic when directory NEW takes the place of OLD.

    Compares what the router compiles, not text: services, rules and listeners, field by field. Comments, order
    of files and spelled-out defaults make no difference. Exit status 0 with or without changes; 2 if a directory has
    errors (what is in force without the bad objects is compared all the same).

    \b
    Example:
      datum-router diff ./manifests.old ./manifests
    """
    before = load_directory(old)
    after = load_directory(new, plugins=before.plugins)
    changes = describe_changes(before.data, after.data)
    diagnostics = [
        diagnostic
        for loaded in (before, after)
        for diagnostic in as_check(loaded.diagnostics, is_strict=False)
        if diagnostic.severity is Severity.ERROR
    ]
    if output == "json":
        counts = {action: sum(change.action == action for change in changes) for action in SIGNS}
        print_json({"old": old, "new": new, **counts, "changes": changes, "diagnostics": diagnostics})
    else:
        console = make_console()
        for diagnostic in diagnostics:
            print_diagnostic(console, diagnostic)
        for change in changes:
            sign, style = SIGNS[change.action]
            say(console, f"{sign} {change.kind} {change.name}", style)
            for line in field_lines(change):
                say(console, line)
        say(console, summary(changes), "bold")
    exit_with(EXIT_BAD_INPUT if _is_bad(before) or _is_bad(after) else EXIT_GOOD)


def _is_bad(loaded: Loaded) -> bool:
    return has_errors(as_check(loaded.diagnostics, is_strict=False))


def field_lines(change: Change) -> list[str]:
    """Return one line for each changed field: `path: old -> new`, values as JSON."""
    return [f"    {field.path}: {shown(field.old)} -> {shown(field.new)}" for field in change.fields]


def shown(value: object) -> str:
    """Return a value as compact JSON."""
    return msgspec.json.encode(value).decode()


def summary(changes: list[Change]) -> str:
    """Return the last line."""
    if not changes:
        return "no changes"
    counts = {action: sum(change.action == action for change in changes) for action in SIGNS}
    return plural(len(changes), "change") + ": " + ", ".join(f"{count} {action}" for action, count in counts.items())
