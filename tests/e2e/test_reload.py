"""Changes while serving: soon in force, never taking down what works.

The promise is one second; `make demo-check`, which runs alone, holds it to that. Here other tests share the machine.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e
SOON_S = 5.0


def test_an_edit_a_rename_and_a_configmap_swap_are_soon_in_force(
    directory: Path, start_gateway: Any, start_backend: Any, kit: Any
) -> None:
    first = start_backend(kit.answer(b"first"))
    second = start_backend(kit.answer(b"second"))
    path = directory / "a.yaml"
    path.write_text(kit.manifest("a", first))
    gateway = start_gateway()
    assert gateway.get("/") == (200, b"first")

    path.write_text(kit.manifest("a", second))
    kit.eventually(lambda: gateway.get("/") == (200, b"second"), "a write in place", SOON_S)

    temporary = directory / ".a.yaml.tmp"
    temporary.write_text(kit.manifest("a", first))
    temporary.rename(path)
    kit.eventually(lambda: gateway.get("/") == (200, b"first"), "an atomic rename", SOON_S)

    path.unlink()
    for version, backend in (("v1", second), ("v2", first)):
        folder = directory / f"..{version}"
        folder.mkdir()
        (folder / "a.yaml").write_text(kit.manifest("a", backend))
    (directory / "..data").symlink_to("..v1")
    path.symlink_to("..data/a.yaml")
    kit.eventually(lambda: gateway.get("/") == (200, b"second"), "the first ConfigMap version", SOON_S)
    (directory / "..data_tmp").symlink_to("..v2")
    os.replace(directory / "..data_tmp", directory / "..data")
    kit.eventually(lambda: gateway.get("/") == (200, b"first"), "the swapped ConfigMap version", SOON_S)


def test_a_broken_file_keeps_its_objects_and_others_still_change(
    directory: Path, start_gateway: Any, start_backend: Any, kit: Any
) -> None:
    backend = start_backend(kit.answer(b"ok"))
    good = kit.manifest("a", backend, path="/a")
    (directory / "a.yaml").write_text(good)
    (directory / "b.yaml").write_text(kit.manifest("b", backend, path="/b"))
    gateway = start_gateway()
    (directory / "a.yaml").write_text(good + "\n---\nkind: [unclosed\n")
    kit.eventually(lambda: bool(gateway.page("/diagnostics")), "a diagnostic", 2.0)
    (found,) = gateway.page("/diagnostics")
    assert found["file"].endswith("a.yaml")
    assert found["line"] > 0
    assert gateway.get("/a") == (200, b"ok")
    (directory / "b.yaml").write_text(kit.manifest("b", backend, path="/c"))
    kit.eventually(lambda: gateway.get("/c") == (200, b"ok"), "another file's change", SOON_S)
    assert gateway.get("/b")[0] == 404
    assert gateway.get("/a") == (200, b"ok")


def test_a_dead_endpoint_gets_no_new_request_and_none_left_is_503(
    directory: Path, start_gateway: Any, start_backend: Any, kit: Any
) -> None:
    health = "  healthCheck: {httpPath: /healthz, intervalSeconds: 1, timeoutSeconds: 1, unhealthyThreshold: 1}"
    first = start_backend(kit.answer(b"first"), "127.0.0.2")
    second = start_backend(kit.answer(b"second"), "127.0.0.3")
    (directory / "a.yaml").write_text(kit.manifest("a", first, second, health=health))
    gateway = start_gateway()
    assert {gateway.get("/")[1] for _ in range(4)} == {b"first", b"second"}
    first.close()
    # Before any probe has seen it: requests that never reached it are tried on the other one.
    assert [gateway.get("/") for _ in range(6)] == [(200, b"second")] * 6

    def shown() -> dict[str, Any]:
        return next(item for item in gateway.page("/health")["endpoints"] if item["endpoint"].startswith("127.0.0.2"))

    kit.eventually(lambda: not shown()["is_usable"], "the probe takes it out")
    assert 0 <= shown()["unchanged_s"] < 60, "seconds since then, whatever the machine's clock shows"
    second.close()
    status, body = gateway.get("/")
    assert status == 503
    assert b"connect_failed" in body or b"no_healthy_endpoint" in body
