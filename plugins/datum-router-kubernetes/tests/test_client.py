"""HTTP with the API: credentials, limits, failures, and calls that are ended from outside."""

from __future__ import annotations

import json
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from datum_router.errors import ClusterError, ClusterForbidden, ClusterUnavailable, ConfigError
from datum_router_kubernetes import client as client_module
from datum_router_kubernetes.access import Place, load_access, locate
from datum_router_kubernetes.answers import ResponseTooLarge
from datum_router_kubernetes.client import MAX_LINE_BYTES, ApiClient, Hold, in_thread, make_client
from datum_router_kubernetes.testing import (
    TOKEN,
    Asked,
    Lines,
    Reply,
    ScriptedApi,
    bookmark,
    eventually,
    page,
    refusal,
    watch,
)

PODS = "/api/v1/pods"


@pytest.fixture
def api() -> Iterator[ScriptedApi]:
    with ScriptedApi() as one:
        yield one


@pytest.fixture
def client(api: ScriptedApi, tmp_path: Path) -> ApiClient:
    return make_client({"kubeconfig": str(api.kubeconfig(tmp_path)), "role": "gateway"})


# --- requests ------------------------------------------------------------------------------------------------------


def test_a_request_carries_credentials_and_gives_the_body(api: ScriptedApi, client: ApiClient) -> None:
    api.lists(PODS, Reply(body=b'{"a":1}'))
    assert client.request("GET", PODS, query={"labelSelector": "a=b,c"}, accept="application/x") == b'{"a":1}'
    (asked,) = api.asked
    assert asked.query == {"labelSelector": "a=b,c"}
    assert asked.headers["authorization"] == f"Bearer {TOKEN}"
    assert asked.headers["accept"] == "application/x"
    assert asked.headers["user-agent"] == "datum-router-gateway"
    assert "content-type" not in asked.headers


def test_a_body_has_its_type(api: ScriptedApi, client: ApiClient) -> None:
    client.request("PATCH", PODS, body=b"{}", content_type="application/apply-patch+yaml")
    assert api.asked[0].method == "PATCH"
    assert api.asked[0].headers["content-type"] == "application/apply-patch+yaml"
    assert api.asked[0].headers["content-length"] == "2"


def test_names_are_escaped(api: ScriptedApi, client: ApiClient) -> None:
    client.request("GET", "/apis/a/v1/things/x?y#z w")
    assert api.asked[0].path == "/apis/a/v1/things/x?y#z w"
    assert api.asked[0].query == {}


def test_what_the_client_is_like_shows_no_secret(client: ApiClient, api: ScriptedApi) -> None:
    assert repr(client) == f"ApiClient('{api.url}')"
    assert client.namespace == "here"


def test_a_refusal_names_verb_and_resource(api: ScriptedApi, client: ApiClient) -> None:
    api.lists(PODS, refusal(403, "Forbidden", message="no"))
    with pytest.raises(ClusterForbidden, match=r"\Alist pods: the API answered 403 Forbidden: no\Z"):
        client.request("GET", PODS)


def test_the_wait_that_the_api_asks_for_is_told(api: ScriptedApi, client: ApiClient) -> None:
    api.lists(PODS, refusal(429, "TooManyRequests", headers={"retry-after": "3"}))
    with pytest.raises(ClusterUnavailable) as caught:
        client.request("GET", PODS)
    assert caught.value.retry_after_s == 3
    assert caught.value.status == 429


def test_a_redirection_is_not_followed_with_our_credentials(api: ScriptedApi, client: ApiClient) -> None:
    api.lists(PODS, Reply(status=302, headers={"location": f"{api.url}/elsewhere"}))
    with pytest.raises(ClusterError) as caught:
        client.request("GET", PODS)
    assert caught.value.status == 302
    assert [one.path for one in api.asked] == [PODS]


def test_nobody_there_is_told_in_the_systems_words(tmp_path: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        config = {
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{one.getsockname()[1]}"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c"}}],
            "current-context": "x",
        }
        (tmp_path / "k").write_text(json.dumps(config))
        client = make_client({"kubeconfig": str(tmp_path / "k")})
        with pytest.raises(ClusterUnavailable, match=r"list pods: no answer from http://\S+: connection refused\Z"):
            client.request("GET", PODS)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_an_answer_beyond_the_limit_is_not_read(api: ScriptedApi, tmp_path: Path, is_chunked: bool) -> None:
    api.lists(PODS, Reply(chunks=[b"x" * 600] * 2) if is_chunked else Reply(body=b"x" * 1001))
    place = Place(kubeconfig=str(api.kubeconfig(tmp_path)))
    client = ApiClient(lambda: load_access(place), max_response_bytes=1000)
    with pytest.raises(ResponseTooLarge, match="limit of 1000"):
        client.request("GET", PODS)
    api.lists(PODS, Reply(body=b"x" * 1000))
    assert len(client.request("GET", PODS)) == 1000


def test_an_answer_that_trickles_is_given_up_in_time(api: ScriptedApi, client: ApiClient) -> None:
    def trickle() -> Iterator[bytes]:
        while True:
            time.sleep(0.02)
            yield b"x"

    api.lists(PODS, Reply(chunks=trickle()))
    with pytest.raises(ClusterUnavailable, match="not whole in time"):
        client.request("GET", PODS, timeout_s=0.2)


def test_half_an_answer_is_none(api: ScriptedApi, client: ApiClient) -> None:
    api.lists(PODS, Reply(chunks=[b"x"], then="cut"))
    with pytest.raises(ClusterUnavailable, match="closed before the answer was whole"):
        client.request("GET", PODS)


@pytest.mark.parametrize(("method", "is_repeated"), [("GET", True), ("PATCH", True), ("PUT", True), ("POST", False)])
def test_a_request_that_met_a_closing_connection_is_repeated_if_that_is_safe(
    api: ScriptedApi, client: ApiClient, method: str, is_repeated: bool
) -> None:
    api.lists(PODS, Reply(body=b"1"), Reply(then="cut"), Reply(body=b"2"))
    assert client.request("GET", PODS) == b"1"
    if is_repeated:
        assert client.request(method, PODS, body=b"{}") == b"2"
    else:
        with pytest.raises(ClusterUnavailable):
            client.request(method, PODS, body=b"{}")


def test_connections_find_out_that_their_peer_is_gone(api: ScriptedApi, client: ApiClient) -> None:
    hold = Hold()
    with client.stream(PODS, query={"watch": "1"}, read_timeout_s=5, hold=hold):
        assert hold._connection is not None
        wire = hold._connection.wire
        assert wire is not None
        assert wire.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == client_module.KEEPALIVE_IDLE_S
        assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == client_module.USER_TIMEOUT_MS


# --- calls that are ended ------------------------------------------------------------------------------------------


def test_a_request_is_ended_from_another_thread(api: ScriptedApi, client: ApiClient) -> None:
    api.lists(PODS, Reply(chunks=(), then="hang"))
    hold = Hold()
    failed: list[ClusterError] = []

    def ask() -> None:
        try:
            client.request("GET", PODS, hold=hold)
        except ClusterError as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    eventually(lambda: api.asked, "asked")
    hold.close()
    thread.join(5)
    assert not thread.is_alive()
    assert isinstance(failed[0], ClusterUnavailable)
    with pytest.raises(ClusterUnavailable):
        client.request("GET", PODS, hold=hold)
    assert len(api.asked) == 1


def test_cancelling_a_call_ends_its_thread(api: ScriptedApi, client: ApiClient) -> None:
    api.lists(PODS, Reply(chunks=(), then="hang"))

    async def main() -> None:
        limiter = trio.CapacityLimiter(1)
        with trio.move_on_after(0.2) as scope:
            await in_thread(lambda hold: client.request("GET", PODS, hold=hold), limiter)
        assert scope.cancelled_caught
        with trio.fail_after(5):  # there is a thread for it when the other one has ended
            await in_thread(lambda hold: client.request("GET", "/api/v1/services", hold=hold), limiter)

    trio.run(main)


def test_calls_give_what_requests_give(api: ScriptedApi, client: ApiClient) -> None:
    api.lists(PODS, Reply(body=b"1"))

    async def main() -> bytes:
        return await in_thread(lambda hold: client.request("GET", PODS, hold=hold), trio.CapacityLimiter(1))

    assert trio.run(main) == b"1"


# --- streams -------------------------------------------------------------------------------------------------------


def test_lines_are_put_together_from_chunks(api: ScriptedApi, client: ApiClient) -> None:
    api.watches(PODS, Reply(chunks=[b"on", b"e\ntwo\nthr", b"ee\n\n", b"rest"]))
    with client.stream(PODS, query={"watch": "1"}, read_timeout_s=5) as stream:
        assert list(stream) == [b"one", b"two", b"three", b"rest"]


def test_lines_come_when_they_are_sent(api: ScriptedApi, client: ApiClient) -> None:
    lines = Lines()
    api.watches(PODS, Reply(chunks=lines))
    with client.stream(PODS, query={"watch": "1"}, read_timeout_s=5) as stream:
        found = iter(stream)
        for number in range(3):
            lines.put(b"%d\n" % number)
            assert next(found) == b"%d" % number
        lines.put(None)
        assert list(found) == []


def test_silence_is_found(api: ScriptedApi, client: ApiClient) -> None:
    api.watches(PODS, watch(bookmark("1")))
    with client.stream(PODS, query={"watch": "1"}, read_timeout_s=0.2) as stream:
        found = iter(stream)
        next(found)
        with pytest.raises(ClusterUnavailable, match=r"watch pods: no answer from .*: it was silent for too long"):
            next(found)


def test_a_stream_is_ended_from_another_thread(api: ScriptedApi, client: ApiClient) -> None:
    api.watches(PODS, watch(bookmark("1")))
    with client.stream(PODS, query={"watch": "1"}, read_timeout_s=30) as stream:
        found = iter(stream)
        next(found)
        threading.Timer(0.1, stream.close).start()
        with pytest.raises(ClusterUnavailable):
            next(found)


def test_a_stream_that_is_cut_is_no_end_in_order(api: ScriptedApi, client: ApiClient) -> None:
    api.watches(PODS, Reply(chunks=[b"one\nhalf"], then="cut"))
    with client.stream(PODS, query={"watch": "1"}, read_timeout_s=5) as stream:
        found = iter(stream)
        assert next(found) == b"one"
        with pytest.raises(ClusterUnavailable):
            next(found)


def test_a_line_beyond_the_limit_is_not_read(api: ScriptedApi, client: ApiClient) -> None:
    api.watches(PODS, Reply(chunks=[b"x" * 65536] * (MAX_LINE_BYTES // 65536 + 1)))
    with (
        client.stream(PODS, query={"watch": "1"}, read_timeout_s=5) as stream,
        pytest.raises(ResponseTooLarge, match="a line has more bytes"),
    ):
        list(stream)


def test_connections_of_requests_are_used_again_and_those_of_streams_are_closed(
    api: ScriptedApi, client: ApiClient
) -> None:
    ports: list[Asked] = []
    api.lists(PODS, Reply(body=b"1"))
    for _ in range(3):
        client.request("GET", PODS)
    pool = client._access.pool.connection_from_url(api.url)
    assert pool.num_connections == 1
    api.watches(PODS, watch(bookmark("1")))
    for _ in range(3):
        with client.stream(PODS, query={"watch": "1"}, read_timeout_s=5) as stream:
            next(iter(stream))
    client.request("GET", PODS)
    assert pool.num_connections <= 4
    assert not ports


# --- credentials ---------------------------------------------------------------------------------------------------


def test_a_token_that_was_replaced_is_read_again_once(api: ScriptedApi, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("old")
    path = api.kubeconfig(tmp_path, user={"tokenFile": str(tmp_path / "token")})
    client = make_client({"kubeconfig": str(path)})

    def judge(asked: Asked) -> Reply:
        return Reply(body=b"1") if asked.headers["authorization"] == "Bearer new" else refusal(401, "Unauthorized")

    api.lists(PODS, judge)
    (tmp_path / "token").write_text("new")
    assert client.request("GET", PODS) == b"1"
    assert [one.headers["authorization"] for one in api.asked] == ["Bearer old", "Bearer new"]


def test_credentials_that_stay_refused_are_told_without_them(api: ScriptedApi, client: ApiClient) -> None:
    api.lists(PODS, refusal(401, "Unauthorized", message="Unauthorized"))
    with pytest.raises(ClusterForbidden) as caught:
        client.request("GET", PODS)
    assert caught.value.status == 401
    assert "user 'u' of kubeconfig" in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert len(api.asked) == 2
    with pytest.raises(ClusterForbidden):  # the configuration is not read again for each of them
        client.request("GET", PODS)
    assert len(api.asked) == 3


def test_a_watch_is_begun_with_new_credentials_too(api: ScriptedApi, client: ApiClient) -> None:
    api.watches(PODS, refusal(401), watch(bookmark("1"), then="end"))
    with client.stream(PODS, query={"watch": "1"}, read_timeout_s=5) as stream:
        assert len(list(stream)) == 1


def test_a_configuration_that_broke_meanwhile_does_no_harm(api: ScriptedApi, tmp_path: Path) -> None:
    path = api.kubeconfig(tmp_path)
    client = make_client({"kubeconfig": str(path)})
    path.write_text("{")
    api.lists(PODS, refusal(401), page([]))
    with pytest.raises(ClusterForbidden):
        client.request("GET", PODS)
    assert client.request("GET", PODS)


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_program_that_gives_credentials_is_asked_and_asked_again(api: ScriptedApi, tmp_path: Path) -> None:
    program = script(
        tmp_path / "login",
        f'echo x >> {tmp_path}/asked; n=$(wc -l < {tmp_path}/asked); printf \'{{"apiVersion":'
        '"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"t%d"}}\' $n',
    )
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(program)}}
    client = make_client({"kubeconfig": str(api.kubeconfig(tmp_path, user=user))})

    def judge(asked: Asked) -> Reply:
        return Reply(body=b"1") if asked.headers["authorization"] == "Bearer t2" else refusal(401)

    api.lists(PODS, judge)
    assert client.request("GET", PODS) == b"1"


def test_a_token_that_cannot_be_one_is_never_sent(api: ScriptedApi, tmp_path: Path) -> None:
    client = make_client({"kubeconfig": str(api.kubeconfig(tmp_path, user={"token": "a\r\nx: y"}))})
    with pytest.raises(ClusterUnavailable) as caught:
        client.request("GET", PODS)
    assert "x: y" not in str(caught.value)
    assert not api.asked


# --- where the configuration is --------------------------------------------------------------------------------------


def test_the_configuration_is_where_the_setting_says_then_the_environment_then_the_pod(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("")
    two.write_text("")
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert locate({"kubeconfig": str(one)}, {"KUBECONFIG": str(two), **pod}).kubeconfig == str(one)
    assert locate({"context": "c"}, {"KUBECONFIG": str(two), **pod}) == Place(
        kubeconfig=str(two), named_by="KUBECONFIG", context="c"
    )
    assert locate({}, {"KUBECONFIG": f"/nowhere:{two}"}).kubeconfig == f"/nowhere:{two}"
    assert locate({}, pod) == Place()


def test_a_kubeconfig_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for settings, environ, expected in (
        ({"kubeconfig": "/no/such"}, {}, "setting kubeconfig: found '/no/such', where there is no file"),
        ({}, {"KUBECONFIG": "/no/such:/nor/this"}, "KUBECONFIG: found '/no/such:/nor/this'"),
        ({"kubeconfig": str(tmp_path)}, {}, "where there is no file"),
        ({"kubeconfig": "a\0b"}, {}, "where there is no file"),
    ):
        with pytest.raises(ConfigError, match=expected.replace("/", "/")):
            locate(settings, environ)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="no cluster is configured"):
        locate({}, {})
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube/config").write_text("")
    assert locate({}, {}).kubeconfig == "~/.kube/config"


CLUSTER = {"name": "c", "cluster": {"server": "https://api.example:6443"}}
CONTEXT = {"name": "prod", "context": {"cluster": "c", "user": "u"}}
USER = {"name": "u", "user": {"token": "SECRET-WORD"}}


@pytest.mark.parametrize(
    ("text", "context", "expected"),
    [
        ("", "", "cannot be read: Invalid kube-config"),
        ("token: [SECRET-WORD", "", r"no YAML: .* in line 1; expected YAML"),
        ("[SECRET-WORD]", "", "not of the form of a kubeconfig"),
        ("a: b", "", r"current-context: found '', expected the name of a context \(contexts there: none\)"),
        ({"contexts": [CONTEXT], "clusters": [CLUSTER], "users": [USER]}, "prd", "did you mean prod?"),
        ({"contexts": [CONTEXT], "users": [USER], "current-context": "prod"}, "", "context prod: Invalid kube-config"),
        (
            {
                "contexts": [CONTEXT],
                "clusters": [{"name": "c", "cluster": {"insecure-skip-tls-verify": True}}],
                "users": [USER],
                "current-context": "prod",
            },
            "",
            "cluster 'c' has no server",
        ),
        (
            {
                "contexts": [CONTEXT],
                "clusters": [{"name": "c", "cluster": {"server": "https://a", "certificate-authority": "/no/ca"}}],
                "users": [USER],
                "current-context": "prod",
            },
            "",
            "context prod: File does not exist: /no/ca",
        ),
        (
            {
                "contexts": [CONTEXT],
                "clusters": [CLUSTER],
                "users": [{"name": "u", "user": {"client-certificate-data": "SECRET-WORD"}}],
                "current-context": "prod",
            },
            "",
            "not of the form of a kubeconfig",
        ),
    ],
)
def test_a_kubeconfig_that_is_wrong_says_what_is_wrong_and_no_secret(
    tmp_path: Path, text: object, context: str, expected: str
) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    with pytest.raises(ConfigError, match=expected) as caught:
        make_client({"kubeconfig": str(path), "context": context})
    assert str(path) in str(caught.value)
    assert "SECRET-WORD" not in str(caught.value)


def test_several_kubeconfigs_are_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(json.dumps({"clusters": [CLUSTER], "users": [USER]}))
    (tmp_path / "b").write_text(json.dumps({"contexts": [CONTEXT], "current-context": "prod"}))
    client = make_client({"kubeconfig": f"{tmp_path}/a:{tmp_path}/missing:{tmp_path}/b"})
    assert client.server == "https://api.example:6443"
    assert client.namespace == "default"


def test_a_pod_finds_its_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    place = Place(account=tmp_path)
    with pytest.raises(ConfigError, match=r"expected token and ca\.crt there"):
        load_access(place)
    (tmp_path / "token").write_text("of-the-account\n")
    (tmp_path / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    (tmp_path / "namespace").write_text("system\n")
    access = load_access(place)
    assert access.server == "https://[fd00::1]:443"
    assert access.namespace == "system"
    assert access.headers() == {"authorization": "bearer of-the-account"}
