"""`datum-router certs`: a CA, identities by it, files that nobody else may read, and Secrets that pass `check`."""

from __future__ import annotations

import json
import ssl
import stat
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from datum_router_cli.commands import cli


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["certs", *map(str, arguments)], prog_name="datum-router")


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    folder = tmp_path / "pki"
    result = invoke("init", folder, "--trust-domain", "shop.example", "--not-before", "2026-01-01T00:00:00Z")
    assert result.exit_code == 0, result.output
    return folder


def described(file: Path) -> dict[str, object]:
    result = invoke("show", file, "--output", "json")
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["certificates"]
    assert isinstance(found, dict)
    return found


def test_a_ca_and_an_identity_are_files_of_which_keys_are_private(pki: Path) -> None:
    result = invoke("issue", pki, "web", "--namespace", "front", "--dns", "web.front.svc", "--days", "2",
                    "--not-before", "2026-01-01T00:00:00Z")  # fmt: skip
    assert result.stdout == f"wrote {pki}/web.key\nwrote {pki}/web.crt\n"
    for name in ("ca", "web"):
        assert stat.S_IMODE((pki / f"{name}.key").stat().st_mode) == 0o600
        assert stat.S_IMODE((pki / f"{name}.crt").stat().st_mode) == 0o644
    assert sorted(file.name for file in pki.iterdir()) == ["ca.crt", "ca.key", "web.crt", "web.key"]
    leaf, ca = described(pki / "web.crt"), described(pki / "ca.crt")
    assert leaf["uris"] == ["spiffe://shop.example/ns/front/sa/web"]
    assert (leaf["dns"], leaf["is_ca"]) == (["web.front.svc"], False)
    # What is asked for is what it is, to the second: five minutes earlier for clocks that are late.
    assert (leaf["begins_at"], leaf["ends_at"]) == ("2025-12-31T23:55:00Z", "2026-01-03T00:00:00Z")
    assert (ca["uris"], ca["is_ca"], ca["ends_at"]) == (["spiffe://shop.example"], True, "2027-01-01T00:00:00Z")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / "web.crt", pki / "web.key")


def test_nothing_is_overwritten_unless_that_is_asked_for(pki: Path) -> None:
    before = (pki / "ca.key").read_text()
    result = invoke("init", pki)
    assert result.exit_code == 2
    assert "is there already; --force" in result.stderr
    assert (pki / "ca.key").read_text() == before
    (pki / "ca.key").chmod(0o644)
    assert invoke("init", pki, "--force").exit_code == 0
    assert (pki / "ca.key").read_text() != before
    assert stat.S_IMODE((pki / "ca.key").stat().st_mode) == 0o600


def test_a_link_in_the_way_is_not_followed(pki: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (pki / "web.key").symlink_to(victim)
    assert invoke("issue", pki, "web").exit_code == 2
    assert invoke("issue", pki, "web", "--force").exit_code == 0
    assert victim.read_text() == "mine"
    assert not (pki / "web.key").is_symlink()


def test_an_identity_as_a_secret_is_what_check_takes(pki: Path, tmp_path: Path) -> None:
    result = invoke("issue", pki, "web", "--service-account", "frontend", "--output", "yaml")
    document = yaml.safe_load(result.stdout)
    assert (document["type"], sorted(document["data"])) == ("kubernetes.io/tls", ["ca.crt", "tls.crt", "tls.key"])
    assert not (pki / "web.key").exists()
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "secret.yaml").write_text(result.stdout)
    checked = CliRunner().invoke(cli, ["check", str(folder), "--output", "json"])
    assert json.loads(checked.stdout)["diagnostics"] == []
    assert json.loads(checked.stdout)["objects"] == {"Secret": 1}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("init", "{pki}/x", "--trust-domain", "Shop.example"), "--trust-domain: found 'Shop.example'"),
        (("init", "{pki}/x", "--trust-domain", "shop.example/a"), "--trust-domain"),
        (("init", "{pki}/x", "--days", "0"), "--days: found 0, expected 1 to 3650"),
        (("init", "{pki}/x", "--not-before", "tomorrow"), "--not-before: found 'tomorrow'"),
        (("issue", "{pki}", "../web"), "NAME: found '../web'"),
        (("issue", "{pki}", "ca"), "choose another name"),
        (("issue", "{pki}", "web", "--namespace", "A"), "--namespace: found 'A'"),
        (("issue", "{pki}", "web", "--dns", "10.0.0.1"), "--dns: found the address"),
        (("issue", "{pki}", "web", "--spiffe-id", "spiffe://a/b/"), "--spiffe-id: found 'spiffe://a/b/'"),
        (("issue", "{pki}/none", "web"), "make it by `datum-router certs init"),
        (("show", "{pki}/ca.key"), "no certificate that can be read"),
        (("show", "{pki}/none"), "cannot be read: no such file"),
    ],
)
def test_what_cannot_be_made_is_told(pki: Path, arguments: tuple[str, ...], said: str) -> None:
    result = invoke(*(one.format(pki=pki) for one in arguments))
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (pki / "x").exists()


def test_a_ca_whose_key_is_another_ones_issues_nothing(pki: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    invoke("init", other)
    (other / "ca.key").replace(pki / "ca.key")
    result = invoke("issue", pki, "web")
    assert result.exit_code == 2
    assert "do not belong together" in result.stderr
    assert (pki / "ca.key").read_text().splitlines()[1] not in result.output


def test_without_cryptography_the_command_says_what_to_install(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cryptography.x509", None)
    result = invoke("show", pki / "ca.crt")
    assert result.exit_code == 2
    assert "extra certs" in result.stderr
