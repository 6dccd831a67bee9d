"""The file of a run, `results.json`: facts, settings and every sample; checked when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from gatebench.processes import BenchError
from gatebench.samples import FIGURES, Sample

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Results:
    """A whole run. `units` and `titles` are those of its measures, so that old files can still be shown."""

    facts: Mapping[str, str]
    settings: Mapping[str, float | int]
    titles: Mapping[str, str]
    units: Mapping[str, str]
    samples: Sequence[Sample]


def save(path: Path, results: Results) -> None:
    """Write `results`, one sample a line, so that two files can be compared by eye."""
    head = {key: getattr(results, key) for key in ("facts", "settings", "titles", "units")}
    lines = ",\n".join("  " + json.dumps(asdict(sample)) for sample in results.samples)
    body = json.dumps({"schema": SCHEMA, **head}, indent=1)
    path.write_text(f'{body[:-2]},\n "samples": [\n{lines}\n ]\n}}\n')


def load(path: Path) -> Results:
    """Read a file that `save` wrote.

    Raises:
        BenchError: It is not there, or it is none; says where it is wrong.
    """
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BenchError(f"{path}: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise BenchError(f"{path}: no results of schema {SCHEMA}")
    for key in ("facts", "settings", "titles", "units"):
        if not isinstance(data.get(key), dict):
            raise BenchError(f"{path}: {key}: expected an object")
    rows = data.get("samples")
    if not isinstance(rows, list):
        raise BenchError(f"{path}: samples: expected a list")
    return Results(
        facts=data["facts"],
        settings=data["settings"],
        titles=data["titles"],
        units=data["units"],
        samples=[_sample(path, index, row) for index, row in enumerate(rows)],
    )


def _sample(path: Path, index: int, row: object) -> Sample:
    known = {field.name for field in fields(Sample)}
    if not isinstance(row, dict) or set(row) != known:
        raise BenchError(f"{path}: samples[{index}]: expected the fields {', '.join(sorted(known))}")
    for name, value in row.items():
        if name in FIGURES:
            is_good = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        elif name in ("round", "requests", "errors"):
            is_good = isinstance(value, int) and not isinstance(value, bool)
        else:
            is_good = isinstance(value, str)
        if not is_good:
            raise BenchError(f"{path}: samples[{index}].{name}: {value!r}")
    return Sample(**row)
