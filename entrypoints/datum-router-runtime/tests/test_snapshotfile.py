"""The last good snapshot on disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import trio

from datum_router.model.snapshot import SnapshotData
from datum_router.testing.factories import make_endpoints, make_rule, make_service
from datum_router_runtime import snapshotfile
from datum_router_runtime.snapshotfile import SnapshotFile, decode_snapshot, encode_snapshot

SCOPE = "files path=x listen="


def data(version: int = 3, digest: str = "d") -> SnapshotData:
    service = make_service("default/a", endpoints=make_endpoints(2))
    return SnapshotData(
        version=version, digest=digest, services={service.key: service}, rules=(make_rule("default/r"),)
    )


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    file = SnapshotFile(str(tmp_path / "last"), scope=SCOPE, clock=lambda: 1234.5)
    trio.run(file.save, data())
    restored = SnapshotFile(str(tmp_path / "last"), scope=SCOPE).read()
    assert restored is not None
    assert restored.data == data()
    assert restored.saved_at == 1234.5


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "last"
    path.with_name("last.new").touch(mode=0o666)
    trio.run(SnapshotFile(str(path), scope=SCOPE).save, data())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_no_file_is_no_snapshot(tmp_path: Path) -> None:
    assert SnapshotFile(str(tmp_path / "last"), scope=SCOPE).read() is None


def test_damaged_and_foreign_files_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = encode_snapshot(data(), saved_at=1.0, scope=SCOPE)
    path = tmp_path / "last"
    for content in (b"", b"x", good[:-1], good[:-1] + b"\x00", good.replace(b"files", b"filez")):
        path.write_bytes(content)
        caplog.clear()
        assert SnapshotFile(str(path), scope=SCOPE).read() is None
        assert "last snapshot cannot be used" in caplog.text


def test_what_others_may_have_put_there_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = tmp_path / "good"
    good.write_bytes(encode_snapshot(data(), saved_at=1.0, scope=SCOPE))
    good.chmod(0o600)
    path = tmp_path / "last"
    path.symlink_to(good)
    assert SnapshotFile(str(path), scope=SCOPE).read() is None
    path.unlink()
    os.mkfifo(path)  # which nobody writes to
    assert SnapshotFile(str(path), scope=SCOPE).read() is None
    assert "no regular file" in getattr(caplog.records[-1], "error", "")
    good.chmod(0o620)
    assert SnapshotFile(str(good), scope=SCOPE).read() is None
    assert "mode 620" in getattr(caplog.records[-1], "error", "")
    good.chmod(0o600)
    assert SnapshotFile(str(good), scope=SCOPE).read() is not None


def test_one_of_other_settings_is_passed_over() -> None:
    with pytest.raises(ValueError, match="other settings: found files path=x listen=, expected kubernetes"):
        decode_snapshot(encode_snapshot(data(), saved_at=1.0, scope=SCOPE), scope="kubernetes")


def test_one_that_is_too_large_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last"
    path.write_bytes(encode_snapshot(data(), saved_at=1.0, scope=SCOPE))
    monkeypatch.setattr(snapshotfile, "MAX_BYTES", 10)
    assert SnapshotFile(str(path), scope=SCOPE).read() is None


def test_a_disk_that_refuses_costs_nothing_but_a_count(tmp_path: Path) -> None:
    file = SnapshotFile(str(tmp_path / "missing" / "last"), scope=SCOPE)
    trio.run(file.save, data())
    assert file.failures == 1


def test_the_old_file_stays_if_the_new_one_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last"
    file = SnapshotFile(str(path), scope=SCOPE)
    trio.run(file.save, data(1))
    before = path.read_bytes()

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    trio.run(file.save, data(2, "other"))
    assert file.failures == 1
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_snapshot_is_not_written_twice(tmp_path: Path) -> None:
    path = tmp_path / "last"
    file = SnapshotFile(str(path), scope=SCOPE)
    trio.run(file.save, data())
    path.unlink()
    trio.run(file.save, data(version=9))
    assert not path.exists()
