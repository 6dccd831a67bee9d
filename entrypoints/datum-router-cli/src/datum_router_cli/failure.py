"""How commands fail: every error says what was found and what would be right, in text or as JSON, with its status."""

from __future__ import annotations

import sys

import click

from datum_router.compiler.diagnostics import did_you_mean
from datum_router.errors import ConfigError, DatumRouterError, SourceError
from datum_router.reasons import Reason
from datum_router_cli.output import print_json, printable

EXIT_GOOD = 0
EXIT_OTHER = 1
EXIT_BAD_INPUT = 2


def exit_code_of(error: DatumRouterError) -> int:
    """Return 2 for what the user gave us and can mend, 1 for the rest."""
    return EXIT_BAD_INPUT if isinstance(error, ConfigError | SourceError) else EXIT_OTHER


def fail(error: DatumRouterError, *, is_json: bool) -> int:
    """Report `error` (JSON: one document on standard output; text: one line on standard error); return the status."""
    if is_json:
        print_json({"error": {"reason": str(error.reason), "message": str(error)}})
    else:
        click.echo(f"datum-router: error: {printable(str(error))}", err=True)
    return exit_code_of(error)


class RouterCommand(click.Command):
    """A command whose project errors become one line and a status instead of a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except DatumRouterError as error:
            ctx.exit(fail(error, is_json=ctx.params.get("output") == "json"))


class RouterGroup(click.Group):
    """A group that answers a mistyped command with the nearest one."""

    command_class = RouterCommand

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that `args` begins with."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            known = self.list_commands(ctx)
            hint = did_you_mean(name, known) or f"commands: {', '.join(known)}"
            raise click.UsageError(f"no such command {printable(name)!r} ({hint})", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the group and its command."""
        try:
            return super().invoke(ctx)
        except DatumRouterError as error:
            ctx.exit(fail(error, is_json=False))


def require(condition: bool, message: str) -> None:
    """Raise a ConfigError with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message, reason=Reason.INVALID_VALUE)


def exit_with(code: int) -> None:
    """End the command with `code`."""
    if code != EXIT_GOOD:
        sys.exit(code)
