"""The gateway's own certificates out of files: emitted as Secrets, read again, and kept when a file breaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import trio
import trio.testing

from datum_router.compiler.environment import NAMESPACE, OwnCredentials
from datum_router.errors import ConfigError
from datum_router.plugins.protocols import Problems, SourceEvent, Synced, Upsert
from datum_router_runtime.ownfiles import MAX_FILE_BYTES, POLL_S, OwnFiles, own_credentials, own_secrets, read_text
from datum_router_runtime.settings import GatewaySettings, settings_from_environment

ENVIRONMENT = {
    "ROUTER_TLS_CERT": "/tls/tls.crt",
    "ROUTER_TLS_KEY": "/tls/tls.key",
    "ROUTER_CLIENT_CERT": "/me/tls.crt",
    "ROUTER_CLIENT_KEY": "/me/tls.key",
    "ROUTER_CLIENT_CA": "/me/ca.crt",
    "ROUTER_CLIENT_VERIFY_SERVER": "false",
}


def settings(environ: Mapping[str, str]) -> GatewaySettings:
    return GatewaySettings.from_mapping(settings_from_environment(environ))


def test_all_names_of_the_environment_are_read() -> None:
    found = settings(ENVIRONMENT)
    assert own_credentials(found) == OwnCredentials(
        has_server=True, has_client=True, has_authorities=True, is_verifying=False
    )
    assert {one.name: dict(one.files) for one in own_secrets(found)} == {
        "router-tls": {
            "tls.crt": ("ROUTER_TLS_CERT", "/tls/tls.crt"),
            "tls.key": ("ROUTER_TLS_KEY", "/tls/tls.key"),
        },
        "router-client": {
            "tls.crt": ("ROUTER_CLIENT_CERT", "/me/tls.crt"),
            "tls.key": ("ROUTER_CLIENT_KEY", "/me/tls.key"),
        },
        "router-client-ca": {"ca.crt": ("ROUTER_CLIENT_CA", "/me/ca.crt")},
    }
    assert own_secrets(settings({})) == ()
    assert own_credentials(settings({})) == OwnCredentials()
    assert settings({"ROUTER_CLIENT_VERIFY_SERVER": "TRUE"}).client_verify_server


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"ROUTER_TLS_CERT": "/a"}, "ROUTER_TLS_CERT: found it without ROUTER_TLS_KEY, expected both or none"),
        ({"ROUTER_CLIENT_KEY": "/a"}, "ROUTER_CLIENT_KEY: found it without ROUTER_CLIENT_CERT, expected both or none"),
        ({"ROUTER_CLIENT_VERIFY_SERVER": "maybe"}, "ROUTER_CLIENT_VERIFY_SERVER: found 'maybe', expected true or fa"),
    ],
)
def test_half_of_a_pair_and_other_words_are_refused(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(environ)
    assert str(caught.value).startswith(said)


class Files:
    """Texts by path; a missing one cannot be read."""

    def __init__(self, **texts: str) -> None:
        self.texts = texts

    def read(self, path: str) -> str:
        if path not in self.texts:
            raise FileNotFoundError(2, "No such file or directory", path)
        return self.texts[path]


async def watch(files: Files, steps: Sequence[dict[str, str]]) -> list[list[SourceEvent]]:
    """Return what is emitted at first, and after each change of the files."""
    batches: list[list[SourceEvent]] = [[]]
    source = OwnFiles(own_secrets(settings({"ROUTER_CLIENT_CERT": "c", "ROUTER_CLIENT_KEY": "k"})), files.read)

    def emit(events: Sequence[SourceEvent]) -> None:
        batches[-1].extend(events)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run, emit)
        await trio.sleep(POLL_S / 2)
        for texts in steps:
            batches.append([])
            files.texts = texts
            await trio.sleep(POLL_S)
        nursery.cancel_scope.cancel()
    return batches


def test_changes_are_emitted_within_a_poll_and_what_is_missing_takes_nothing_away() -> None:
    clock = trio.testing.MockClock(autojump_threshold=0.01)
    steps: list[dict[str, str]] = [
        {"c": "C1", "k": "K1"},
        {"c": "C2", "k": "K2"},
        {"c": "C2"},
        {},
        {"c": "C2", "k": "K2"},
        {"c": "C3", "k": "K2"},
    ]
    first, same, changed, missing, both, back, last = trio.run(watch, Files(c="C1", k="K1"), steps, clock=clock)
    assert [type(one) for one in first] == [Upsert, Synced]
    assert isinstance(first[0], Upsert)
    assert isinstance(first[0].raw, dict)
    assert first[0].raw["metadata"] == {"name": "router-client", "namespace": NAMESPACE}
    assert first[0].raw["stringData"] == {"tls.crt": "C1", "tls.key": "K1"}
    assert same == []
    assert [type(one) for one in changed] == [Upsert]
    (problem,) = missing
    assert isinstance(problem, Problems)
    (told,) = problem.diagnostics
    assert told.object == "environment ROUTER_CLIENT_KEY"
    assert told.message == "k cannot be read: no such file or directory; what was read before stays in force"
    assert isinstance(both[0], Problems)
    assert len(both[0].diagnostics) == 2
    assert back == [Problems(source="environment", scope="router-client")]
    assert [type(one) for one in last] == [Upsert]


def test_files_that_are_not_there_at_the_start_are_told_and_hold_nobody_up() -> None:
    clock = trio.testing.MockClock(autojump_threshold=0.01)
    first, come = trio.run(watch, Files(), [{"c": "C1", "k": "K1"}], clock=clock)
    assert [type(one) for one in first] == [Problems, Synced]
    assert [type(one) for one in come] == [Problems, Upsert]


def test_what_is_no_text_or_too_long_is_refused_without_quoting_it(tmp_path: object) -> None:
    folder = str(tmp_path)
    with open(f"{folder}/binary", "wb") as file:
        file.write(b"secret \xff")
    with pytest.raises(ValueError, match=r"^it is no text$") as caught:
        read_text(f"{folder}/binary")
    assert caught.value.__cause__ is None
    with open(f"{folder}/long", "wb") as file:
        file.write(b"x" * (MAX_FILE_BYTES + 1))
    with pytest.raises(ValueError, match="larger than 1048576 bytes"):
        read_text(f"{folder}/long")
    with open(f"{folder}/good", "wb") as file:
        file.write(b"x" * MAX_FILE_BYTES)
    assert len(read_text(f"{folder}/good")) == MAX_FILE_BYTES
