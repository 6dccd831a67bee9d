"""Kubeconfigs from Secrets: inline data only, and no message shows a credential."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import pytest

from datum_router.errors import ConfigError
from datum_router.reasons import Reason
from datum_router_kubernetes.access import load_access, locate
from datum_router_kubernetes.textconfig import MAX_BYTES, read

SECRET = "s3cr3t-t0ken-of-somebody"


def config() -> dict:
    return {
        "current-context": "there",
        "contexts": [{"name": "there", "context": {"cluster": "c", "user": "u", "namespace": "apps"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://api.example.com:6443"}}],
        "users": [{"name": "u", "user": {"token": SECRET}}],
    }


def test_what_is_needed_is_taken() -> None:
    found = read(json.dumps(config()))
    assert (found.namespace, found.note) == ("apps", "user u at api.example.com")
    assert SECRET not in repr(found)
    access = load_access(locate({"kubeconfigText": json.dumps(config())}))
    assert access.server == "https://api.example.com:6443"
    assert access.headers() == {"authorization": f"Bearer {SECRET}"}
    assert access.namespace == "apps"


def _set(*path: str | int, value: object) -> Callable[[dict], None]:
    def change(raw: dict) -> None:
        for step in path[:-1]:
            raw = raw[step]
        raw[path[-1]] = value

    return change


USER, CLUSTER = ("users", 0, "user"), ("clusters", 0, "cluster")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_set(*USER, "exec", value={"command": "sh"}), "user u has exec, which is not taken from a Secret"),
        (_set(*USER, "tokenFile", value="/var/run/secrets/token"), "user u has tokenFile"),
        (_set(*USER, "client-key", value="/etc/key"), "user u has client-key,"),
        (_set(*USER, "auth-provider", value={"name": "gcp"}), "user u has auth-provider"),
        (_set(*USER, "as", value="admin"), "user u has as,"),
        (_set(*USER, "client-key-data", value="no base64!"), "client-key-data is no base64"),
        (_set(*USER, "token", value=7), "token is no text"),
        (_set(*CLUSTER, "certificate-authority", value="/etc/passwd"), "cluster c has certificate-authority,"),
        (_set(*CLUSTER, "insecure-skip-tls-verify", value=True), "cluster c has insecure-skip-tls-verify"),
        (_set(*CLUSTER, "proxy-url", value="http://evil"), "cluster c has proxy-url"),
        (_set(*CLUSTER, "server", value="http://api.example.com"), "cluster c has no usable server"),
        (_set(*CLUSTER, "server", value="https://u:p@api.example.com"), "cluster c has no usable server"),
        (_set("current-context", value="elsewhere"), "contexts has no context 'elsewhere'"),
        (_set("contexts", value=[]), "contexts has no context 'there'"),
        (_set("users", value=[{"name": "u", "user": {}}]), "user u has no credentials"),
        (_set("clusters", value="many"), "clusters has no cluster 'c'"),
    ],
)
def test_what_could_do_harm_is_refused(change: Callable[[dict], None], expected: str) -> None:
    raw = config()
    change(raw)
    with pytest.raises(ConfigError) as caught:
        read(json.dumps(raw))
    assert expected in str(caught.value)
    assert "; expected " in str(caught.value)
    assert caught.value.reason is Reason.INVALID_KUBECONFIG
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "]",
        "just text",
        "- a\n- b",
        f"token: {SECRET}\n  bad: [",
        "a: &a [*a]",
        "[" * 5000,
        "{a: " * 5000,
        "1" * 5000,
        "\x00",
        "x" * (MAX_BYTES + 1),
    ],
)
def test_garbage_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert SECRET not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_keys_that_are_no_keys_are_refused_without_showing_them() -> None:
    raw = config()
    raw["users"][0]["user"] = {"client-key-data": base64.b64encode(SECRET.encode()).decode()}
    with pytest.raises(ConfigError, match="client-key-data is no base64 of a PEM block") as caught:
        read(json.dumps(raw))
    assert SECRET not in str(caught.value)


BOMB = "\n".join(
    [
        "a0: &a0 {x: 1}",
        *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)),
        "current-context: c",
        "contexts: [{name: c, context: {cluster: *a11}}]",
    ]
)
MERGE_BOMB = "\n".join(
    ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12))]
)


@pytest.mark.parametrize("text", [BOMB, MERGE_BOMB, "a: &a 1", f"{json.dumps(config())[:-1]}, more: &x {{y: 1}}}}"])
def test_aliases_by_which_little_text_stands_for_much_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="it has a YAML anchor or alias"):
        read(text)


def test_nesting_is_bounded() -> None:
    with pytest.raises(ConfigError, match="nested more than 16 deep"):
        read(f"extensions: {'[' * 20}{']' * 20}")


@pytest.mark.parametrize("path", [("clusters", 0, "cluster"), ("users", 0, "user")])
def test_names_in_messages_are_bounded_and_printable(path: tuple[str | int, ...]) -> None:
    nasty = "\x1b[2J\n" + "n" * 5000
    raw = config()
    what = str(path[2])
    raw[path[0]][0]["name"] = nasty
    raw["contexts"][0]["context"][what] = nasty
    raw[path[0]][0][what] = {"exec": {"command": "sh"}, nasty: 1}
    with pytest.raises(ConfigError) as caught:
        read(json.dumps(raw))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_a_name_that_is_no_text_is_refused() -> None:
    raw = config()
    raw["contexts"][0]["context"]["user"] = [[["u"]]]
    with pytest.raises(ConfigError, match="users has no user without a name that is text"):
        read(json.dumps(raw))
