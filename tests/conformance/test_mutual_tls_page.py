"""The page on mutual TLS: its commands run, its manifests are what a gateway takes, and the two fit together."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "how-to" / "mutual-tls.md").read_text()


def run(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "datum_router_cli", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_works_from_top_to_bottom(tmp_path: Path) -> None:
    (commands,) = [block for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if "certs init" in block]
    for line in commands.splitlines():
        text, _, target = line.partition(" > ")
        program, *arguments = shlex.split(text)
        if program == "mkdir":
            assert arguments == ["-p", "manifests"]
            (tmp_path / "manifests").mkdir()
            continue
        assert program == "datum-router"
        printed = run(tmp_path, *arguments)
        if target:
            (tmp_path / target).write_text(printed)
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)):
        (tmp_path / "manifests" / f"{number}.yaml").write_text(block)
    assert "spiffe://example.org/ns/shop/sa/shop" in run(tmp_path, "certs", "show", "pki/shop.crt")
    checked = json.loads(run(tmp_path, "check", "manifests", "--strict", "--output", "json"))
    assert checked["diagnostics"] == []
    assert checked["objects"] == {"Secret": 2, "VPCIngress": 1, "VPCService": 1}
    told = json.loads(run(tmp_path, "explain", "manifests", "GET", "https://shop.example.com/", "--output", "json"))
    assert told["outcome"] == "routed"
    assert told["client_certificate"]["names"] == ["spiffe://example.org/ns/front/*"]
    assert told["destinations"][0]["tls"] == "mutual TLS, verified as spiffe://example.org/ns/shop/sa/shop"


def test_the_page_names_every_field_and_variable() -> None:
    from datum_router.manifests.vpcingress import ClientAuth
    from datum_router_runtime.settings import OWN_FILES, VERIFY_SERVER

    for name in (*ClientAuth.__struct_encode_fields__, *OWN_FILES, VERIFY_SERVER):
        assert f"`{name}`" in PAGE, name
