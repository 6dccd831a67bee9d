"""Write everything that is generated: CRDs, reference pages of kinds, hooks and settings. `--check` only compares."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import msgspec

from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.schema import crd_file_name, crd_yaml, reference_markdown
from datum_router.plugins import hookspecs
from datum_router.plugins.manager import HOOK_NAMES
from datum_router_proxy.settings import ProxySettings
from datum_router_runtime.settings import ENVIRONMENT, GatewaySettings

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


def outputs() -> dict[Path, str]:
    """Return every generated file and its content."""
    files: dict[Path, str] = {}
    index = ["# Reference", "", "Generated from the code by `make docs`, but for the pages on order and limits.", ""]
    for kind in OWN_KINDS:
        files[REPOSITORY / "manifests" / "crds" / crd_file_name(kind)] = crd_yaml(kind)
        files[REFERENCE / f"{kind.kind.lower()}.md"] = reference_markdown(kind)
        index.append(f"- [{kind.kind}]({kind.kind.lower()}.md)")
    index += ["- [Order of rules](precedence.md)", "- [Hooks](hooks.md)", "- [Settings and limits](settings.md)", ""]
    files[REFERENCE / "hooks.md"] = hooks_page()
    files[REFERENCE / "settings.md"] = settings_page()
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
