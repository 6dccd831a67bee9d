"""ServiceBindings from a directory: the page on them says what happens."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from datum_router_cli.commands import cli

PAGE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "bind-a-kubernetes-service.md"
BLOCKS = re.findall(r"```yaml\n(apiVersion:.*?)```", PAGE.read_text(), re.DOTALL)
BINDING, SLICES, GRANT = BLOCKS

Run = Callable[[str], tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATUM_ROUTER_LOG", raising=False)
    (tmp_path / "conf").mkdir()
    write(BINDING, SLICES)

    def invoke(line: str) -> tuple[int, str]:
        found = CliRunner().invoke(cli, line.split(), prog_name="datum-router")
        return found.exit_code, found.stdout

    return invoke


def write(*texts: str) -> None:
    for number, text in enumerate(texts):
        Path("conf", f"{number}.yaml").write_text(text)


def endpoints(run: Run) -> list[str]:
    """Return the endpoints that a request may go to, with what is said of each."""
    code, text = run("explain conf GET http://localhost/")
    assert code == 0, text
    return [line.strip() for line in text.splitlines() if "servicebinding:" in line]


def test_the_page_passes_check_strictly(run: Run) -> None:
    write(BINDING, SLICES, GRANT)
    assert run("check conf --strict")[0] == 0


def test_endpoints_are_those_that_the_page_names(run: Run) -> None:
    found = endpoints(run)
    assert [re.search(r"[\d.]+:\d+", line).group() for line in found] == ["10.1.0.8:9000", "10.40.7.2:9000"]  # type: ignore[union-attr]
    assert all("from servicebinding:default/shop" in line for line in found)


def test_without_the_attachment_the_pod_is_left_out_and_named(run: Run) -> None:
    write(BINDING, SLICES[: SLICES.index("---\napiVersion: galactic")])
    assert len(endpoints(run)) == 1
    code, text = run("check conf --strict")
    assert code != 0
    assert "pod default/shop-0 names vpcattachment shop-0, which is not there [NoVPCAddress]" in text


def test_a_service_that_is_misspelt_is_hinted_at(run: Run) -> None:
    write(BINDING.replace("serviceRef: {name: shop}", "serviceRef: {name: shopp}", 1), SLICES)
    code, text = run("check conf --strict")
    assert code != 0
    assert "[ServiceNotFound]" in text
    assert "did you mean shop?" in text


def test_a_service_of_another_namespace_is_refused_with_what_to_do(run: Run) -> None:
    there = "apiVersion: v1\nkind: Service\nmetadata: {name: shop, namespace: prod}\nspec: {ports: [{port: 80}]}\n"
    write(BINDING.replace("serviceRef: {name: shop}", "serviceRef: {name: shop, namespace: prod}", 1), SLICES, there)
    code, text = run("check conf")
    assert code != 0
    assert "[RefNotPermitted]" in text
    assert "add a ReferenceGrant to namespace prod, from ServiceBinding" in text
    assert run("explain conf GET http://localhost/")[1].count("servicebinding:") == 0
