"""What is wrong with a YAML file, in words that say where and what would be right."""

from __future__ import annotations

import yaml

MAX_DEPTH = 100

_SENTENCES = {
    "mapping values are not allowed in this context": (
        "a colon stands where no key can begin",
        "put quotes around a value that contains ': ', and indent keys of one mapping equally",
    ),
    "did not find expected key": (
        "this line does not fit the indentation of the mapping above it",
        "indent keys of one mapping equally, and close quotes and brackets",
    ),
    "could not find expected ':'": ("a key has no ':' after it", "write `key: value`"),
    "did not find expected '-' indicator": (
        "a list is followed by something that is not a `- ` item",
        "indent the items of one list equally",
    ),
    "did not find expected ',' or ']'": ("a list in brackets is not closed", "add the missing ',' or ']'"),
    "did not find expected ',' or '}'": ("a mapping in braces is not closed", "add the missing ',' or '}'"),
    "did not find expected node content": (
        "a list or mapping in brackets is not closed, or a value is missing in it",
        "add the missing bracket or value",
    ),
    "found unexpected end of stream": ("a quoted text is not closed", "add the closing quote"),
    "found unknown escape character": (
        "a backslash in double quotes begins an escape that YAML does not know",
        "write it twice, or use single quotes",
    ),
    "exceeded maximum nesting depth": (f"nested deeper than {MAX_DEPTH} levels", "flatten the document"),
    "found incompatible YAML document": ("the %YAML directive names a version that is not 1.1 or 1.2", "remove it"),
}


class FileError(Exception):
    """The rest of the file cannot be read."""

    def __init__(self, line: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.line, self.message, self.hint = line, message, hint


class DocumentError(FileError):
    """One document cannot be used; the next one may be."""


def explain(error: yaml.YAMLError, data: bytes) -> FileError:
    """Return an error of libyaml as one of ours: `data` is the file it was found in."""
    problem = str(getattr(error, "problem", "") or getattr(error, "reason", "") or error)
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark is not None else 0
    column = mark.column + 1 if mark is not None else 0
    message, hint = _SENTENCES.get(problem, (problem, ""))
    lines = data.splitlines()
    here = lines[line - 1] if 0 < line <= len(lines) else b""
    if problem == "found a tab character that violates indentation":
        message, hint = "a tab stands where YAML allows only spaces", "indent with spaces"
    elif problem == "found character that cannot start any token":
        character = here[column - 1 : column]
        if character == b"\t" or (here[:column].strip(b" \t") == b"" and b"\t" in here[:column]):
            message, hint = "a tab stands where YAML allows only spaces", "indent with spaces"
        else:
            shown = character.decode("ascii", "replace") if character else "this character"
            message, hint = f"`{shown}` cannot begin a value", "put the value in quotes"
    elif (context := getattr(error, "context", "")) in ("while scanning an alias", "while scanning an anchor"):
        sign = "*" if context == "while scanning an alias" else "&"
        message, hint = f"`{sign}` begins a value, which YAML takes for an alias or anchor", "put the value in quotes"
    elif b"{{" in here:
        hint = "this looks like a template: render it first, and give the router its output"
    elif problem == "found unexpected end of stream":
        begin = getattr(error, "context_mark", None)
        if begin is not None:  # where the quote was opened says more than where the file ends
            line, column = begin.line + 1, begin.column + 1
    where = f" (column {column})" if column else ""
    return FileError(line, f"{message}{where}", hint)
