"""The pages on monitoring name metrics that there are, in queries and rules that Prometheus accepts."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from datum_router.observe.names import CONTROLLER_METRICS, DISCOVERY_METRICS, METRICS, Kind, Metric

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "how-to" / "monitor.md").read_text()
CONTROLLER_PAGE = (REPOSITORY / "docs" / "how-to" / "run-the-controller.md").read_text()


def blocks(language: str, page: str = PAGE) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def queries() -> list[str]:
    """Return the examples: each begins with a comment."""
    (block,) = blocks("promql")
    return ["\n".join(part.splitlines()[1:]) for part in block.strip().split("\n\n")]


def alerts(page: str = PAGE) -> dict[str, object]:
    (found,) = [loaded for text in blocks("yaml", page) if "groups" in (loaded := yaml.safe_load(text))]
    return found


@pytest.mark.parametrize(
    ("page", "metrics", "at_least"),
    [(PAGE, METRICS, 16), (CONTROLLER_PAGE, CONTROLLER_METRICS, 4)],
    ids=["gateway", "controller"],
)
def test_every_metric_of_the_page_exists_with_these_labels(
    page: str, metrics: Mapping[str, Metric], at_least: int
) -> None:
    series = {name for name, metric in metrics.items() if metric.kind is not Kind.HISTOGRAM}
    for name, metric in metrics.items():
        if metric.kind is Kind.HISTOGRAM:
            series |= {f"{name}_bucket", f"{name}_sum", f"{name}_count", name}
    named = set(re.findall(r"\bdatum_(?:router|gateway)_\w+\b(?!\.)", page))  # with a dot it is a logger's name
    assert len(named) >= at_least
    assert named <= series
    for name, selector in re.findall(r"\b(datum_(?:router|gateway)_\w+)\{([^}]*)\}", page):
        labels = {label.name: label for label in metrics[name.removesuffix("_bucket")].labels}
        for label, values in re.findall(r'(\w+)[!=~]+"([^"]*)"', selector):
            closed = labels[label].values
            if closed:
                assert set(values.split("|")) <= set(closed)


def test_the_reference_has_every_value_of_each_label_beside_its_metric() -> None:
    page = (REPOSITORY / "docs" / "reference" / "metrics.md").read_text()
    rows: dict[str, list[tuple[str, set[str]]]] = {}
    for name, of, values in re.findall(r"^\| `(\w+)`( of [^|]+)? \| ([^|]+) \|$", page, re.MULTILINE):
        rows.setdefault(name, []).append((of, set(re.findall(r"`(\w+)`", values))))
    wrong = []
    for metric in {**METRICS, **CONTROLLER_METRICS, **DISCOVERY_METRICS}.values():
        for label in metric.labels:
            told = [values for of, values in rows[label.name] if not of or f"`{metric.name}`" in of]
            if len(told) != 1 or not set(label.values) <= told[0]:
                wrong.append(f"{metric.name}{{{label.name}}}")
    assert wrong == []


def test_prometheus_accepts_the_queries_and_alerts(tmp_path: Path) -> None:
    unpacked = REPOSITORY / ".run" / "tools" / "promtool"
    tool = str(unpacked) if unpacked.exists() else shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not there: `make promtool` unpacks it from Debian's package prometheus")
    records = [{"record": f"example:{index}", "expr": query} for index, query in enumerate(queries())]
    assert len(records) >= 8
    groups = [*alerts()["groups"], *alerts(CONTROLLER_PAGE)["groups"], {"name": "examples", "rules": records}]  # type: ignore[misc]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": groups}))
    done = subprocess.run([tool, "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = sum(len(group["rules"]) for group in groups)
    assert f"SUCCESS: {expected} rules found" in done.stdout
