"""Standard output: rich text for people, one JSON document for machines."""

from __future__ import annotations

import sys

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from datum_router.compiler.diagnostics import Diagnostic, Severity

output_option = click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Text for people, or one JSON document for machines.",
)

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}


def printable(text: str) -> str:
    """Return `text` with control characters escaped: manifests and URLs must not steer a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def make_console() -> Console:
    """Return a console on standard output; colours only on a terminal and without NO_COLOR, lines never wrapped."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)


def say(console: Console, text: str, style: str = "") -> None:
    """Print one line of text that may hold anything."""
    console.print(Text(printable(text), style=style))


def print_diagnostic(console: Console, diagnostic: Diagnostic) -> None:
    """Print one diagnostic as `file:line: error: object: path: message [reason] (hint)`."""
    text = Text(printable(diagnostic.render()))
    word = f"{diagnostic.severity}: "
    start = text.plain.find(word)
    if start >= 0:
        text.stylize(STYLES[diagnostic.severity], start, start + len(word))
    console.print(text)


def print_table(console: Console, headings: list[str], rows: list[list[str]]) -> None:
    """Print rows under headings, columns as wide as they need to be."""
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, no_wrap=True, overflow="ignore")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    width = console.width
    console.width = max(width, 400)  # a pipe reports 80 columns; cut cells help nobody
    try:
        with console.capture() as captured:
            console.print(table)
    finally:
        console.width = width
    for line in captured.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")


def print_json(document: object) -> None:
    """Print one JSON document and a line end."""
    encoded = msgspec.json.format(msgspec.json.encode(document, enc_hook=str), indent=2)
    click.echo(encoded.decode())


def plural(count: int, word: str) -> str:
    """Return `1 error`, `2 errors`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
