"""What documentation shows is what the code does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trustme
import yaml

from datum_router.manifests.kinds import OWN_KINDS
from datum_router_cli.commands import EPILOG, cli
from datum_router_runtime.variables import VARIABLES
from tests.conformance.manifest_corpus import judge

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("DATUM_ROUTER_SHARED", REPOSITORY.parent / "shared"))
YAML_BLOCK = re.compile(r"```yaml\n(.*?)```", re.DOTALL)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=REPOSITORY, check=False)


def check(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run("-m", "datum_router_cli", "check", str(directory), *options)


def test_generated_pages_and_crds_are_up_to_date() -> None:
    done = run("docs/generate.py", "--check")
    assert done.returncode == 0, f"run `make docs`; stale: {done.stdout}{done.stderr}"


def test_all_examples_pass_check_even_strictly(tmp_path: Path) -> None:
    # The demo's directory holds the examples, and beside them what a cluster would hold, but for the Secret.
    # A demo that was run has left one of its own.
    written = shutil.ignore_patterns("certificate.json")
    shutil.copytree(REPOSITORY / "demo" / "manifests", tmp_path, dirs_exist_ok=True, ignore=written)
    for name, hosts in {"secure-tls": ["secure.example.com", "shop.edge.example.com"]}.items():
        issued = trustme.CA().issue_cert(*hosts)
        chain, key = issued.cert_chain_pems[0].bytes().decode(), issued.private_key_pem.bytes().decode()
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "default"}}
        data = {"tls.crt": chain, "tls.key": key}
        (tmp_path / f"{name}.json").write_text(json.dumps({**secret, "type": "kubernetes.io/tls", "stringData": data}))
    done = check(tmp_path, "--strict")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "manifests" / "examples").glob("*.yaml")), ids=lambda path: path.name
)
def test_each_example_file_passes_check_alone(path: Path, tmp_path: Path) -> None:
    (tmp_path / path.name).write_text(path.read_text())
    done = check(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def blocks(text: str) -> list[str]:
    return [block for block in YAML_BLOCK.findall(text) if "apiVersion:" in block]


def test_manifests_of_the_readme_pass_check(tmp_path: Path) -> None:
    found = blocks((REPOSITORY / "README.md").read_text())
    assert found
    for index, block in enumerate(found):
        (tmp_path / f"{index}.yaml").write_text(block)
    done = check(tmp_path, "--strict")
    assert done.returncode == 0, done.stdout + done.stderr


PAGES = {
    str(page.relative_to(REPOSITORY)): found
    for page in sorted((REPOSITORY / "docs").rglob("*.md"))
    if (found := blocks(page.read_text()))
}


@pytest.mark.parametrize("page", PAGES)
def test_manifests_of_each_page_are_taken_as_they_are(page: str) -> None:
    # One by one: a page may show the objects of two clusters. What they refer to may be elsewhere.
    objects = [raw for block in PAGES[page] for raw in yaml.safe_load_all(block)]
    ours = [raw for raw in objects if raw["apiVersion"] == OWN_KINDS[0].api_version]
    assert {raw["kind"]: judge(raw)[1] for raw in ours} == {raw["kind"]: set() for raw in ours}


def test_pages_that_show_manifests_are_found() -> None:
    assert len(PAGES) >= 8


def test_every_example_of_the_original_readme_loads_unchanged(tmp_path: Path) -> None:
    path = SHARED / "seed" / "datum-router-readme.md"
    if not path.exists():
        pytest.skip(f"the original README is not there: {path} (it is no part of this repository)")
    found = blocks(path.read_text())
    assert len(found) == 6
    for index, block in enumerate(found):
        (tmp_path / f"{index}.yaml").write_text(block)
    done = check(tmp_path, "--output", "json")
    assert done.returncode == 0, done.stdout + done.stderr
    # Attachments and Services are what the README does not show: references to them are warnings, nothing else is.
    assert '"error"' not in done.stdout
    for kind in ("VPCService", "VPCRoute", "ServiceBinding"):
        assert f'"{kind}": 2' in done.stdout


def test_links_between_pages_lead_somewhere() -> None:
    pages = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
    broken = []
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(REPOSITORY)}: {target}")
    assert not broken


def test_the_demo_names_a_command_that_explains_the_request_before_it() -> None:
    ((url, port),) = re.findall(
        r"datum-router explain demo/manifests GET (\S+) --listen :(\S+)\"",
        (REPOSITORY / "demo" / "demo.py").read_text().replace("{port}", "8080"),
    )
    done = run("-m", "datum_router_cli", "explain", "demo/manifests", "GET", url, "--listen", f":{port}")
    assert "winner: default/api-routes#0" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("index", ["docs/README.md", "docs/reference/README.md", "docs/explanation/adr/README.md"])
def test_an_index_names_every_page_below_it(index: str) -> None:
    path = REPOSITORY / index
    below = path.parent.rglob("*.md") if path.parent.name == "docs" else path.parent.glob("*.md")
    nearer = [
        REPOSITORY / "docs" / "reference",
        REPOSITORY / "docs" / "explanation" / "adr",
    ]  # have indexes of their own
    pages = {
        page for page in below if page.name != "README.md" and (page.parent == path.parent or page.parent not in nearer)
    }
    told = {(path.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", path.read_text())}
    assert pages
    assert sorted(str(page.relative_to(REPOSITORY)) for page in pages - told) == []


def test_every_package_of_the_core_is_in_the_architecture() -> None:
    told = (REPOSITORY / "docs" / "architecture.md").read_text()
    packages = [path.parent.name for path in (REPOSITORY / "src" / "datum_router").glob("*/__init__.py")]
    assert len(packages) > 10
    assert [name for name in packages if not re.search(rf"`(src/datum_router/)?{name}`", told)] == []


def test_the_library_example_of_the_readme_runs_as_printed() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    done = run("-c", code)
    assert (done.returncode, done.stdout) == (0, "default/api#0\n"), done.stderr


def test_the_storm_that_a_page_shows_is_the_one_that_happens() -> None:
    page = (REPOSITORY / "docs" / "explanation" / "retries-and-timeouts.md").read_text()
    summary = "\n".join(run("-m", "datum_router_cli", "sim", "retry-storm").stdout.splitlines()[-2:])
    assert summary.startswith("per hop: ")
    assert f"...\n{summary}\n```" in page


def test_every_environment_variable_is_in_the_table_of_the_gateway_that_takes_them_all() -> None:
    read = set()
    for module in (*REPOSITORY.glob("entrypoints/*/src/**/*.py"), *REPOSITORY.glob("plugins/*/src/**/*.py")):
        read |= set(re.findall(r"DATUM_ROUTER_[A-Z_]+[A-Z]", module.read_text()))
    told = (REPOSITORY / "entrypoints" / "datum-router-gateway" / "README.md").read_text()
    assert len(read) > 10
    assert sorted(read - set(re.findall(r"DATUM_ROUTER_[A-Z_]+", told))) == []


def test_a_gateway_warns_of_no_variable_that_its_table_has() -> None:
    told = (REPOSITORY / "entrypoints" / "datum-router-gateway" / "README.md").read_text()
    assert sorted(set(re.findall(r"DATUM_ROUTER_[A-Z_]+[A-Z]", told)) - VARIABLES) == []


@pytest.mark.parametrize("process", ["gateway", "controller", "discovery"])
def test_a_table_of_variables_has_each_of_them_once(process: str) -> None:
    told = (REPOSITORY / "entrypoints" / f"datum-router-{process}" / "README.md").read_text()
    named = [
        name for row in re.findall(r"^\|([^|]+)\|", told, re.MULTILINE) for name in re.findall(r"`([A-Z_]+)`", row)
    ]
    assert len(named) > 10
    assert sorted({name for name in named if named.count(name) > 1}) == []


def test_the_commands_page_has_every_command() -> None:
    told = (REPOSITORY / "entrypoints" / "datum-router-cli" / "README.md").read_text()
    assert [name for name in cli.commands if not re.search(rf"^\| `{name}\b", told, re.MULTILINE)] == []


def test_the_front_page_tells_every_variable_that_help_does() -> None:
    told = (REPOSITORY / "README.md").read_text()
    assert [name for name in re.findall(r"DATUM_ROUTER_[A-Z_]+", EPILOG) if f"`{name}`" not in told] == []
