"""Write what is generated: CRDs, reference pages of kinds, hooks, settings and metrics. `--check` only compares."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import msgspec

from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.schema import crd_file_name, crd_yaml, reference_markdown
from datum_router.observe import ledger, names
from datum_router.observe.meter import DURATION_BOUNDS_S
from datum_router.plugins import hookspecs
from datum_router.plugins.manager import HOOK_NAMES
from datum_router_proxy import limits
from datum_router_proxy.server.listener import AcceptLimits
from datum_router_proxy.settings import ProxySettings
from datum_router_runtime.settings import ENVIRONMENT, GatewaySettings
from datum_router_runtime.telemetry import MEASURE_TIMEOUT_S

REPOSITORY = Path(__file__).resolve().parent.parent
REFERENCE = REPOSITORY / "docs" / "reference"


def hooks_page() -> str:
    lines = ["# Hooks", "", "All are called at start-up or compile time, none per request.", ""]
    for name in HOOK_NAMES:
        function = getattr(hookspecs, name)
        returns = inspect.signature(function).return_annotation
        lines += [f"## `{name}() -> {returns}`", "", inspect.getdoc(function) or "", ""]
    return "\n".join(lines)


def settings_page() -> str:
    lines = ["# Settings", "", "## Gateway process", "", "```text", inspect.getdoc(GatewaySettings) or "", "```", ""]
    lines += ["| field | type | default |", "|---|---|---|"]
    lines += _rows(GatewaySettings)
    lines += ["", "Environment: " + ", ".join(f"`{variable}` = `{field}`" for variable, field in ENVIRONMENT.items())]
    lines += ["", "## Built-in data plane (`data_plane_config`)", "", "```text", inspect.getdoc(ProxySettings) or ""]
    lines += ["```", "", "| field | type | default |", "|---|---|---|", *_rows(ProxySettings), ""]
    return "\n".join(lines)


def _rows(struct: type) -> list[str]:
    rows = []
    for field in msgspec.structs.fields(struct):
        default = field.default if field.default is not msgspec.NODEFAULT else "-"
        kind = str(struct.__annotations__.get(field.name, field.type)).replace("|", "\\|")
        rows.append(f"| `{field.name}` | `{kind}` | `{default}` |")
    return rows


METRICS_INTRO = """# Metrics

`GET /metrics` on the admin listener (`--admin 127.0.0.1:9901`), in the Prometheus text format 0.0.4.
[What to alert on, and queries](../how-to/monitor.md).

- **Exact.** A scrape asks every worker for what it has not told yet and waits for them, {timeout:g} s at most: a
  request whose answer a client has read to its end is in the next scrape, whichever worker served it. A worker that
  does not answer in time is counted in `{late}`; what it has counted comes with its next report.
- **Never backwards.** Counters belong to the gateway, not to a worker: one that is replaced or drained takes nothing
  with it. Of a worker that is killed (SIGKILL, out of memory) what it had counted since its last report is lost: at
  most `report_interval_s` of requests, 1 s of connection, retry and permit counters. Counters begin at 0 when the
  supervisor is started.
- **Bounded.** No label ever holds text of a client. At most {own:,} pairs of route and service, {own:,} services and
  {own:,} listeners have series of their own, fewer if their names are long; first come, first served. All others are
  counted together as `other`, and `{folded}` says how many there are. Series of objects that
  are deleted are dropped {idle:g} s after they were last counted. The page stays below 5 MiB.
- A labelled series is there from the first time that something was counted; counters without labels always are.
"""


def metrics_page() -> str:
    lines = [
        METRICS_INTRO.format(
            timeout=MEASURE_TIMEOUT_S,
            late=names.LATE_REPORTS.name,
            own=ledger.MAX_OWN,
            folded=names.FOLDED.name,
            idle=ledger.IDLE_S,
        )
    ]
    lines += ["| metric | type | unit | labels | |", "|---|---|---|---|---|"]
    labels: dict[str, names.Label] = {}
    for metric in names.METRICS.values():
        shown = " ".join(f"`{label.name}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {metric.unit} | {shown} | {metric.help} |")
        for label in metric.labels:
            known = labels.get(label.name)
            # The longer of two closed sets under one name: refusals have one reason more.
            labels[label.name] = label if known is None or len(label.values) > len(known.values) else known
    bounds = ", ".join(f"{bound:g}" for bound in DURATION_BOUNDS_S)
    lines += ["", f"Buckets of `{names.REQUEST_DURATION.name}`: {bounds} s.", "", "## Labels", ""]
    lines += ["| label | values |", "|---|---|"]
    for label in labels.values():
        values = ", ".join(f"`{value}`" for value in label.values) or label.objects
        lines.append(f"| `{label.name}` | {values} |")
    lines += ["", "## Limits of the built-in data plane", ""]
    lines += ["Which series shows that a limit was reached. What is full first makes the other side wait.", ""]
    lines += ["| setting | series |", "|---|---|"]
    for struct, table in ((ProxySettings, limits.SETTINGS), (AcceptLimits, limits.ACCEPT)):
        for name in (field.name for field in msgspec.structs.fields(struct) if field.name in table):
            series = ", ".join(f"`{one}`" for one in table[name])
            lines.append(f"| `{struct.__name__}.{name}` | {series} |")
    return "\n".join([*lines, ""])


def outputs() -> dict[Path, str]:
    """Return every generated file and its content."""
    files: dict[Path, str] = {}
    index = ["# Reference", "", "Generated from the code by `make docs`, but for the pages on order and limits.", ""]
    for kind in OWN_KINDS:
        files[REPOSITORY / "manifests" / "crds" / crd_file_name(kind)] = crd_yaml(kind)
        files[REFERENCE / f"{kind.kind.lower()}.md"] = reference_markdown(kind)
        index.append(f"- [{kind.kind}]({kind.kind.lower()}.md)")
    index += ["- [Order of rules](precedence.md)", "- [Hooks](hooks.md)", "- [Settings and limits](settings.md)"]
    index += ["- [Metrics](metrics.md)", ""]
    files[REFERENCE / "hooks.md"] = hooks_page()
    files[REFERENCE / "settings.md"] = settings_page()
    files[REFERENCE / "metrics.md"] = metrics_page()
    files[REFERENCE / "README.md"] = "\n".join(index)
    return files


def main() -> int:
    stale = []
    for path, content in outputs().items():
        if path.exists() and path.read_text() == content:
            continue
        stale.append(path)
        if "--check" not in sys.argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    for path in stale:
        print(path.relative_to(REPOSITORY))
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
