"""Write plain data as YAML: deterministic, block style, readable by YAML 1.1 and 1.2 alike. No reader, no options."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

# Text that needs no quotes in either YAML version; all else is written as a JSON string, which YAML includes.
_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./ ()\-]*\Z")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"})


def dump(value: object) -> str:
    """Return `value` (mappings, sequences, text, numbers, booleans, None) as a YAML document, in the order given."""
    return "\n".join(_block(value)) + "\n"


def _scalar(value: object) -> str:
    if isinstance(value, str):
        is_plain = _PLAIN.match(value) is not None and value.lower().strip(".") not in _WORDS
        return value if is_plain and value == value.strip() and value.strip(".") else json.dumps(value)
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, Mapping) and not value:
        return "{}"
    if isinstance(value, Sequence) and not value:
        return "[]"
    raise TypeError(f"cannot write {type(value).__name__} as YAML")


def _is_block(value: object) -> bool:
    return isinstance(value, Mapping | Sequence) and not isinstance(value, str) and bool(value)


def _block(value: object) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for name, member in value.items():
            key = _scalar(str(name))
            if _is_block(member):
                yield f"{key}:"
                # Items of a list stand at the level of its key, as kubectl writes them.
                margin = "" if isinstance(member, Sequence) else "  "
                yield from (margin + line for line in _block(member))
            else:
                yield f"{key}: {_scalar(member)}"
    elif _is_block(value) and isinstance(value, Sequence):
        for item in value:
            lines = list(_block(item))
            yield f"- {lines[0]}"
            yield from (f"  {line}" for line in lines[1:])
    else:
        yield _scalar(value)
