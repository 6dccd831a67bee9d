"""The key that seals sessions."""

from __future__ import annotations

from pathlib import Path

import pytest

from datum_router.errors import ConfigError
from datum_router.policy.affinity import KEY_BYTES
from datum_router_runtime.sessionkey import LEAST_BYTES, MOST_BYTES, read_session_key


def test_without_a_file_each_start_has_a_new_key() -> None:
    assert len(read_session_key("")) == KEY_BYTES
    assert read_session_key("") != read_session_key("")


def test_equal_files_give_equal_keys_whatever_space_is_around(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("k" * LEAST_BYTES)
    other.write_text("k" * LEAST_BYTES + "\n")
    assert read_session_key(str(one)) == read_session_key(str(other)) != b"k" * KEY_BYTES


@pytest.mark.parametrize("size", [0, LEAST_BYTES - 1, MOST_BYTES + 9])
def test_a_key_that_is_too_short_or_too_long_is_refused_and_not_shown(tmp_path: Path, size: int) -> None:
    path = tmp_path / "key"
    path.write_text("Q" * size)
    with pytest.raises(ConfigError, match=r"^DATUM_ROUTER_SESSION_KEY_FILE: .* found .* bytes, expected 16") as caught:
        read_session_key(str(path))
    assert "QQ" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory, expected a file with a key"):
        read_session_key(str(tmp_path / "none"))
