import msgspec
import pytest

from datum_router.compiler.diff import apply_delta, describe_changes, digest_of, make_delta, without_secrets
from datum_router.errors import ConfigError
from datum_router.model.egress import EgressPolicy, EgressRule, EgressTarget
from datum_router.model.endpoint import UNKNOWN_LOCALITY, Locality, make_endpoint
from datum_router.model.listener import Listener, TlsBinding
from datum_router.model.route import BackendRef, Rule, RuleId
from datum_router.model.service import Service, ServiceKey, UpstreamTls
from datum_router.model.snapshot import SnapshotData


def rule(name: str, weight: int = 100) -> Rule:
    ref = BackendRef(service=ServiceKey("default/a"), weight=weight)
    return Rule(id=RuleId(name), route=name.split("#", maxsplit=1)[0], destinations=(ref,))


def service(name: str, *addresses: str) -> Service:
    return Service(key=ServiceKey(name), endpoints=tuple(make_endpoint(address, 80) for address in addresses))


def snapshot(
    version: int, rules: list[Rule], services: list[Service], place: Locality = UNKNOWN_LOCALITY
) -> SnapshotData:
    table = {item.key: item for item in services}
    data = SnapshotData(version=version, rules=tuple(rules), services=table, place=place)
    return msgspec.structs.replace(data, digest=digest_of(data))


OLD = snapshot(1, [rule("default/a#0"), rule("default/b#0")], [service("default/a", "10.0.0.1"), service("default/b")])


@pytest.mark.parametrize(
    "new",
    [
        snapshot(2, [rule("default/b#0"), rule("default/a#0")], [service("default/a", "10.0.0.1")]),
        snapshot(2, [rule("default/a#0", weight=5)], [service("default/a", "10.0.0.1", "10.0.0.2")]),
        snapshot(2, [], []),
        snapshot(2, [rule("default/c#0"), *OLD.rules], [*OLD.services.values(), service("default/c", "10.0.0.9")]),
        snapshot(2, list(OLD.rules), list(OLD.services.values()), place=Locality(location="iad-1", latitude=38.9)),
    ],
    ids=["reordered", "changed", "emptied", "grown", "moved"],
)
def test_delta_turns_the_old_snapshot_into_the_new_one(new: SnapshotData) -> None:
    delta = msgspec.msgpack.decode(msgspec.msgpack.encode(make_delta(OLD, new)), type=type(make_delta(OLD, new)))
    assert apply_delta(OLD, delta) == new
    assert digest_of(apply_delta(OLD, delta)) == new.digest


def test_delta_names_only_what_changed() -> None:
    new = snapshot(2, [OLD.rules[0], rule("default/b#0", weight=1)], list(OLD.services.values()))
    delta = make_delta(OLD, new)
    assert [item.id for item in delta.rules] == ["default/b#0"]
    assert (delta.removed_rules, delta.positions) == ((1,), (1,))
    assert not delta.services
    assert delta.listeners is None


def test_delta_for_another_version_is_refused() -> None:
    delta = make_delta(OLD, snapshot(2, [], []))
    with pytest.raises(ConfigError, match="found base version 1, expected 7"):
        apply_delta(msgspec.structs.replace(OLD, version=7), delta)


def test_digest_ignores_the_version_and_sees_everything_else() -> None:
    assert digest_of(msgspec.structs.replace(OLD, version=99)) == OLD.digest
    assert digest_of(msgspec.structs.replace(OLD, listeners=(Listener(name="x"),))) != OLD.digest
    assert digest_of(msgspec.structs.replace(OLD, place=Locality(location="x"))) != OLD.digest
    assert (
        digest_of(snapshot(1, [rule("default/a#0", weight=1), OLD.rules[1]], list(OLD.services.values()))) != OLD.digest
    )


def test_a_place_is_described_like_the_other_parts() -> None:
    iad, lhr = (msgspec.structs.replace(OLD, place=Locality(location=name)) for name in ("iad-1", "lhr-1"))
    assert [(item.kind, item.name, item.action) for item in describe_changes(OLD, iad)] == [
        ("place", "gateway", "added")
    ]
    (moved,) = describe_changes(iad, lhr)
    assert [(field.path, field.old, field.new) for field in moved.fields] == [("location", "iad-1", "lhr-1")]


def test_changes_are_described_by_field_and_secrets_are_redacted() -> None:
    def with_key(key: str) -> SnapshotData:
        binding = TlsBinding(hostnames=("a.test",), cert_pem="certificate", key_pem=key)
        return msgspec.structs.replace(OLD, listeners=(Listener(name="https-8443", tls=(binding,)),))

    changes = describe_changes(with_key("first-canary"), with_key("second-canary"))
    assert [(item.kind, item.name, item.action) for item in changes] == [("listener", "https-8443", "changed")]
    assert changes[0].fields[0].path == "tls[0].key_pem"
    assert "canary" not in repr(changes)


def test_secrets_in_what_is_added_or_removed_are_redacted() -> None:
    def with_bindings(*hosts: str) -> SnapshotData:
        tls = tuple(TlsBinding(hostnames=(host,), cert_pem="canary", key_pem="canary") for host in hosts)
        return msgspec.structs.replace(OLD, listeners=(Listener(name="https-8443", tls=tls),))

    for before, after in (((), ("a.test",)), (("a.test",), ("a.test", "b.test")), (("a.test", "b.test"), ("b.test",))):
        (change,) = describe_changes(with_bindings(*before), with_bindings(*after))
        assert "canary" not in repr(change)
        assert "b.test" in repr(change) or "a.test" in repr(change)


def test_credentials_of_egress_destinations_are_shown_nowhere() -> None:
    def with_key(key: str) -> SnapshotData:
        tls = UpstreamTls(server_name="a.test", ca_pem="canary", cert_pem="canary", key_pem=key)
        target = EgressTarget(host="a.test", port=443, tls=tls)
        rules = (EgressRule(name="default/out", namespace="default", targets=(target,)),)
        return msgspec.structs.replace(OLD, egress=EgressPolicy(rules=rules))

    shown = msgspec.json.encode(without_secrets(with_key("canary-key"))).decode()
    assert "canary" not in shown
    assert "a.test" in shown
    for before, after in ((OLD, with_key("canary-1")), (with_key("canary-1"), with_key("canary-2"))):
        (change,) = describe_changes(before, after)
        assert "canary" not in repr(change)


def test_endpoints_are_compared_by_key_not_by_place() -> None:
    old = snapshot(1, [], [service("default/a", "10.0.0.1", "10.0.0.2")])
    new = snapshot(2, [], [service("default/a", "10.0.0.2", "10.0.0.3")])
    (change,) = describe_changes(old, new)
    assert [(field.path, field.old is None, field.new is None) for field in change.fields] == [
        ("endpoints[10.0.0.1:80]", False, True),
        ("endpoints[10.0.0.3:80]", True, False),
    ]
    (moved,) = describe_changes(old, snapshot(2, [], [service("default/a", "10.0.0.2", "10.0.0.1")]))
    assert moved.fields


def test_added_and_removed_objects_are_listed() -> None:
    new = snapshot(2, [rule("default/b#0"), rule("default/n#0")], [service("default/b")])
    found = {(item.kind, item.name, item.action) for item in describe_changes(OLD, new)}
    assert found == {
        ("rule", "default/a#0", "removed"),
        ("rule", "default/n#0", "added"),
        ("service", "default/a", "removed"),
    }
