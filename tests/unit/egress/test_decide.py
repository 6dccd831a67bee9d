"""Decisions: order, conditions, defaults, what is closed, whose traffic it is."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datum_router.egress.decide import EgressRequest, EgressTable, Holds, Verdict, in_order
from datum_router.egress.destination import Destination, parse_authority_form
from datum_router.model.egress import (
    EgressAttachment,
    EgressPolicy,
    EgressProtocol,
    EgressReason,
    EgressRule,
    EgressSource,
    EgressTarget,
)
from datum_router.policy.bucket import TokenBucket

SOURCE = EgressSource(namespaces=("default",), attachments=("default/web",), labels={"app": "web"})


def rule(name: str = "r", **changes: object) -> EgressRule:
    return EgressRule(**{"name": f"default/{name}", "namespace": "default", **changes})  # type: ignore[arg-type]


def decide(
    rules: list[EgressRule],
    target: str = "a.example:443",
    *addresses: str,
    source: EgressSource = SOURCE,
    method: str | None = None,
    path: str | None = None,
) -> Verdict:
    destination = parse_authority_form(target)
    assert isinstance(destination, Destination)
    table = EgressTable(EgressPolicy(rules=in_order(rules)))
    request = EgressRequest(destination=destination, method=method, path=path)
    verdict = table.judge_name(source, request)
    return verdict if verdict.is_final else table.judge_addresses(source, request, addresses or ("8.8.8.8",))


def said(verdict: Verdict) -> str:
    return f"{verdict.reason} {verdict.policy}".strip()


ALLOW = rule("allow")


def test_what_nobody_allows_is_denied_and_no_name_is_resolved() -> None:
    assert said(decide([rule(hostnames=("b.example",))])) == "denied_by_default"
    assert said(decide([])) == "no_policy"
    assert said(decide([ALLOW], source=EgressSource())) == "unknown_source"


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([rule("a", priority=2), rule("d", is_allow=False, priority=3)], "allowed_by_rule default/a"),
        ([rule("a", priority=2), rule("d", is_allow=False, priority=2)], "denied_by_rule default/d"),
        ([rule("a", priority=2), rule("d", is_allow=False, priority=1)], "denied_by_rule default/d"),
        ([rule("z", priority=2), rule("b", priority=2)], "allowed_by_rule default/b"),
    ],
)
def test_lower_priorities_come_first_and_deny_wins_a_tie(rules: list[EgressRule], expected: str) -> None:
    assert said(decide(rules)) == expected
    assert said(decide(rules[::-1])) == expected, "the order of arrival does not matter"


def test_the_first_default_of_the_sources_rules_decides_what_no_rule_holds_for() -> None:
    other = rule("x", hostnames=("b.example",), is_default_allow=True, priority=5)
    assert said(decide([other])) == "allowed_by_default default/x"
    deny = rule("y", hostnames=("c.example",), is_default_allow=False, priority=4)
    assert said(decide([other, deny])) == "denied_by_default default/y"
    foreign = rule("z", attachments=("default/other",), is_default_allow=True, priority=1)
    assert said(decide([foreign, rule("q", hostnames=("c.example",))])) == "denied_by_default"


def test_a_default_opens_nothing_that_is_closed() -> None:
    other = rule("x", hostnames=("b.example",), is_default_allow=True)
    assert said(decide([other], "a.example:80", "127.0.0.1")) == "closed_address default/x"
    assert said(decide([other], "10.0.0.1:80")) == "closed_address default/x"
    assert said(decide([other], "localhost:80", "8.8.8.8")) == "closed_name default/x"


@pytest.mark.parametrize(
    ("networks", "address", "is_open"),
    [
        (("0.0.0.0/0",), "10.0.0.1", False),
        (("10.0.0.0/8",), "10.0.0.1", True),
        (("10.0.0.0/7",), "10.0.0.1", False),
        (("10.1.0.0/16",), "10.0.0.1", False),
        (("169.254.0.0/16",), "169.254.1.1", True),
        (("169.254.0.0/16",), "169.254.169.254", False),
        (("169.254.169.254/32",), "169.254.169.254", True),
        (("10.0.0.0/8", "0.0.0.0/0"), "10.0.0.1", True),
        (("::/0",), "::1", False),
        (("::1/128",), "::1", True),
        (("0.0.0.0/8",), "0.0.0.0", False),
        (("::/128",), "::", False),
        (("::ffff:10.0.0.0/104",), "10.0.0.1", True),
        (("10.0.0.0/8",), "64:ff9b::a00:1", True),
        (("0.0.0.0/0", "::/0"), "64:ff9b::a00:1", False),
        (("2000::/3", "0.0.0.0/0"), "2001:0:808:808::f5ff:fffe", False),
    ],
)
def test_a_closed_range_is_opened_by_a_network_within_it_alone(
    networks: tuple[str, ...], address: str, is_open: bool
) -> None:
    verdict = decide([rule(networks=networks)], "a.example:80", address)
    assert verdict.is_allowed == is_open, verdict


def test_a_closed_range_is_opened_by_the_address_itself_at_its_port() -> None:
    target = EgressTarget(host="10.0.0.1", port=80)
    assert decide([rule(targets=(target,))], "10.0.0.1:80").target == target
    assert decide([rule(targets=(target,))], "a.example:80", "10.0.0.1").is_allowed
    assert not decide([rule(targets=(target,))], "10.0.0.1:81").is_allowed
    assert not decide([rule(targets=(target,))], "10.0.0.2:80").is_allowed


@pytest.mark.parametrize(
    ("hostnames", "name", "is_open"),
    [
        ((), "localhost", False),
        (("localhost",), "localhost", True),
        (("*.internal",), "metadata.google.internal", False),
        (("metadata.google.internal",), "metadata.google.internal", True),
        (("*.local",), "a.default.svc.cluster.local", False),
        (("*.cluster.local",), "a.default.svc.cluster.local", True),
        (("*.default.svc.cluster.local",), "a.default.svc.cluster.local", True),
    ],
)
def test_a_closed_name_is_opened_by_itself_alone(hostnames: tuple[str, ...], name: str, is_open: bool) -> None:
    verdict = decide([rule(hostnames=hostnames)], f"{name}:80", "8.8.8.8")
    assert verdict.is_allowed == is_open
    if not is_open:
        assert verdict.reason == "closed_name"


def test_of_several_addresses_only_those_that_are_allowed_may_be_dialled() -> None:
    deny = rule("d", is_allow=False, priority=1, networks=("9.9.9.0/24",))
    verdict = decide([ALLOW, deny], "a.example:80", "9.9.9.9", "8.8.8.8", "10.0.0.1", "8.8.8.8", "::ffff:8.8.4.4", "x")
    assert verdict.addresses == ("8.8.8.8", "8.8.4.4")
    assert said(decide([ALLOW, deny], "a.example:80", "9.9.9.9", "10.0.0.1")) == "denied_by_rule default/d"


def test_rules_that_differ_by_address_do_not_share_their_addresses() -> None:
    first = rule("one", networks=("8.8.8.0/24",), priority=1)
    verdict = decide([first, rule("two")], "a.example:80", "8.8.8.8", "9.9.9.9")
    assert (verdict.policy, verdict.addresses) == ("default/one", ("8.8.8.8",))


def test_conditions_on_port_protocol_labels_method_and_path() -> None:
    assert not decide([rule(ports=(80,))]).is_allowed
    assert decide([rule(ports=(80, 443))]).is_allowed
    http = rule(protocols=(EgressProtocol.HTTP,))
    assert not decide([http]).is_allowed
    assert decide([http], method="GET", path="/").is_allowed
    tls = rule(protocols=(EgressProtocol.TLS,))
    assert decide([tls]).must_be_tls
    assert not decide([rule(protocols=(EgressProtocol.TLS, EgressProtocol.TCP))]).must_be_tls
    assert not decide([tls], method="GET", path="/").is_allowed
    assert decide([rule(source_labels={"app": "web"})]).is_allowed
    assert not decide([rule(source_labels={"app": "db"})]).is_allowed
    reads = rule(methods=("GET",), paths=("/v1",))
    assert decide([reads], method="GET", path="/v1/x").is_allowed
    assert not decide([reads], method="GET", path="/v10").is_allowed
    assert not decide([reads], method="PUT", path="/v1").is_allowed
    assert not decide([reads]).is_allowed, "what cannot be read"


def test_what_cannot_be_known_holds_against_the_traffic() -> None:
    admin = rule("d", is_allow=False, paths=("/admin",), priority=1)
    assert said(decide([admin, ALLOW])) == "unreadable default/d"
    assert decide([admin, ALLOW], method="GET", path="/").is_allowed
    labelled = rule("l", is_allow=False, source_labels={"app": "bad"}, priority=1)
    unknown = EgressSource(namespaces=("default",), attachments=("default/web",))
    assert said(decide([labelled, ALLOW], source=unknown)) == "denied_by_rule default/l"
    assert decide([labelled, ALLOW]).is_allowed


def test_an_address_matches_no_host_name_and_a_name_no_other() -> None:
    assert not decide([rule(hostnames=("a.example",))], "8.8.8.8:443").is_allowed
    wild = rule(hostnames=("*.example",))
    assert decide([wild], "a.example:443").is_allowed
    assert decide([wild], "b.a.example:443").is_allowed
    assert not decide([wild], "example:443").is_allowed


# --- whose traffic ------------------------------------------------------------------------------------------------


ATTACHMENTS = (
    EgressAttachment(name="default/gate", vpc="default/shop", addresses=("10.1.0.1",)),
    EgressAttachment(name="default/web", vpc="default/shop", labels={"app": "web"}, addresses=("10.1.0.5",)),
    EgressAttachment(name="other/web", vpc="other/lab", labels={"app": "lab"}, addresses=("10.1.0.5", "fd00::5")),
)


@pytest.mark.parametrize(
    ("interface", "address", "configured", "attachments", "namespaces"),
    [
        ("default/gate", "10.1.0.5", "", ("default/web", "default/gate"), ("default",)),
        ("default/gate", "10.1.0.9", "", ("default/gate",), ("default",)),
        ("nobody/knows", "10.1.0.5", "", ("nobody/knows",), ("nobody",)),
        ("", "fd00::5", "", ("other/web",), ("other",)),
        ("", "10.1.0.5", "", (), ()),  # two have it
        ("", "10.1.0.5", "default/web", ("default/web",), ("default",)),
        ("", "192.0.2.1", "default/", (), ("default",)),
        ("", "fd00::5", "default/web", ("other/web",), ("other",)),
        ("", "192.0.2.1", "", (), ()),
    ],
)
def test_a_source_is_known_by_interface_then_address_then_setting(
    interface: str, address: str, configured: str, attachments: tuple[str, ...], namespaces: tuple[str, ...]
) -> None:
    table = EgressTable(EgressPolicy(attachments=ATTACHMENTS))
    found = table.identify(interface=interface, address=address, configured=configured)
    assert (found.attachments, found.namespaces) == (attachments, namespaces)


def test_rules_are_about_named_attachments_or_the_whole_namespace() -> None:
    mine = rule(attachments=("default/web",))
    assert decide([mine]).is_allowed
    other = EgressSource(namespaces=("default",), attachments=("default/db",))
    assert said(decide([mine], source=other)) == "no_policy"
    assert decide([rule()], source=other).is_allowed
    assert said(decide([rule()], source=EgressSource(namespaces=("other",)))) == "no_policy"


def test_every_rule_says_why_it_does_not_hold() -> None:
    rules = [rule("a", ports=(80,)), rule("b", networks=("8.8.8.0/24",)), rule("c", attachments=("default/x",))]
    table = EgressTable(EgressPolicy(rules=in_order(rules)))
    request = EgressRequest(destination=Destination(name="a.example", port=443))
    found = {one.name: verdict for one, verdict in table.explain(SOURCE, request, None)}
    assert found["default/a"].holds is Holds.NO
    assert "destinationPorts" in found["default/a"].why
    assert found["default/b"].holds is Holds.ADDRESS
    assert "other traffic" in found["default/c"].why
    assert table.explain(SOURCE, request, "8.8.8.8")[1][1].holds is Holds.YES
    assert table.closed_range("8.8.8.8") is None
    assert table.closed_range("::ffff:10.0.0.1") is not None


# --- properties ---------------------------------------------------------------------------------------------------

TARGETS_OF_RULES = (
    EgressTarget(host="a.example", port=443),
    EgressTarget(host="localhost", port=80),
    EgressTarget(host="10.0.0.1", port=80),
    EgressTarget(host="8.8.8.8", port=80),
)
CONDITIONS: dict[str, list[object]] = {
    "networks": [("0.0.0.0/0",), ("10.0.0.0/8",), ("8.8.8.0/24", "::/0")],
    "hostnames": [("a.example",), ("*.example",), ("localhost",)],
    "ports": [(80,), (443, 1)],
    "protocols": [*((one,) for one in EgressProtocol), (EgressProtocol.HTTP, EgressProtocol.TLS)],
    "methods": [("GET",), ("PUT", "POST")],
    "paths": [("/v1",), ("/v2/", "/v1/x")],
    "source_labels": [{"app": "web"}, {"app": "db"}],
    "targets": [(TARGETS_OF_RULES[0], TARGETS_OF_RULES[2]), TARGETS_OF_RULES[1:]],
}
ONE_CONDITION = st.one_of([st.tuples(st.just(field), st.sampled_from(CONDITIONS[field])) for field in CONDITIONS])
# Few conditions each: rules with many hold for nothing, and say nothing of one another.
RULES = st.builds(
    lambda conditions, **fields: rule(**{**dict(conditions), **fields}),
    st.lists(ONE_CONDITION, min_size=1, max_size=2),
    name=st.sampled_from(["a", "b", "c", "d"]),
    is_allow=st.sampled_from([True, True, False]),
    priority=st.integers(0, 3),
    is_default_allow=st.sampled_from([None, None, True, False]),
)
OPEN_TARGETS = st.sampled_from(["a.example:443", "a.example:80", "8.8.8.8:80"])
TARGETS = OPEN_TARGETS | st.sampled_from(["localhost:80", "10.0.0.1:80", "[::1]:1"])
CLOSED = {"10.0.0.1": "10.0.0.0/8", "127.0.0.1": "127.0.0.0/8", "::1": "::1/128"}
ADDRESSES = st.lists(st.ip_addresses().map(str) | st.sampled_from(["8.8.8.8", *CLOSED]), max_size=4)
OPEN_ADDRESSES = st.sampled_from(["8.8.8.8", "8.8.9.9", "2606:4700::1"])
KNOWN_ADDRESSES = st.lists(OPEN_ADDRESSES | st.sampled_from([*CLOSED]), min_size=1, max_size=4)
READABLE = st.tuples(st.sampled_from(["GET", "PUT"]), st.sampled_from(["/v1", "/v10", "/v1/x", "/v2"]))
READ = st.one_of(st.none(), READABLE, READABLE)
SOURCES = st.sampled_from([SOURCE, msgspec.structs.replace(SOURCE, labels=None)])


def holds(one: EgressRule, source: EgressSource, request: EgressRequest, address: str) -> bool:
    """Tell whether all conditions of a rule hold, by the words of the manual."""
    wanted, method, path = request.destination, request.method, request.path or ""
    is_readable = method is not None
    # What cannot be known holds if the rule denies.
    labels = source.labels
    asked = one.source_labels or {}
    has_labels = not one.is_allow if labels is None else all(labels.get(key) == asked[key] for key in asked)
    carried = {"TCP", "HTTP"} if is_readable else {"TCP", "TLS", "HTTPS"}
    has_name = wanted.name != "" and any(
        wanted.name.endswith(text[1:]) if text.startswith("*.") else wanted.name == text for text in one.hostnames
    )
    has_method = not one.methods or (method in one.methods if is_readable else not one.is_allow)
    has_path = not one.paths or (
        any(f"{path}/".startswith(f"{prefix.rstrip('/')}/") for prefix in one.paths)
        if is_readable
        else not one.is_allow
    )
    return (
        (not asked or has_labels)
        and (not one.ports or wanted.port in one.ports)
        and (not one.protocols or not carried.isdisjoint(one.protocols))
        and (not one.hostnames or has_name)
        and has_method
        and has_path
        and (not one.targets or meant(one, wanted, address) is not None)
        and (not one.networks or any(ip_address(address) in ip_network(text) for text in one.networks))
    )


def meant(one: EgressRule, wanted: Destination, address: str) -> EgressTarget | None:
    return next((it for it in one.targets if it.port == wanted.port and it.host in (wanted.name, address)), None)


def opens(one: EgressRule | None, wanted: Destination, address: str) -> bool:
    """Tell whether a rule opens what is closed of a destination."""
    if one is None:
        return wanted.name != "localhost" and address not in CLOSED
    hosts = {it.host for it in one.targets}
    if wanted.name == "localhost" and "localhost" not in {*one.hostnames, *hosts}:
        return False
    if address not in CLOSED or any(it.host == address and it.port == wanted.port for it in one.targets):
        return True
    closed = ip_network(CLOSED[address])
    return any(
        network.version == closed.version and network.subnet_of(closed) and ip_address(address) in network  # type: ignore[arg-type]  # of one version
        for network in map(ip_network, one.networks)
    )


def oracle(rules: list[EgressRule], source: EgressSource, request: EgressRequest, addresses: list[str]) -> Verdict:
    """Return what may be dialled, and by which rule, without stages: each address by itself, rules in their order."""
    ordered = sorted(rules, key=lambda one: (one.priority, one.is_allow, one.name))
    wanted = request.destination
    default = next((one for one in ordered if one.is_default_allow is not None), None)
    allowed: list[tuple[EgressRule, bool, EgressTarget | None, str]] = []
    for address in [wanted.address] if wanted.address else addresses:
        decider = next((one for one in ordered if holds(one, source, request, address)), None)
        by = decider or default
        is_allowed = decider.is_allow if decider is not None else default is not None and default.is_default_allow
        if by is not None and is_allowed and opens(decider, wanted, address):
            allowed.append((by, decider is not None, meant(by, wanted, address), address))
    if not allowed:
        return Verdict(is_allowed=False, reason=EgressReason.DENIED_BY_DEFAULT)
    first = allowed[0]
    return Verdict(
        is_allowed=True,
        reason=EgressReason.ALLOWED_BY_RULE if first[1] else EgressReason.ALLOWED_BY_DEFAULT,
        rule=first[0],
        target=first[2],
        addresses=tuple(dict.fromkeys(one[3] for one in allowed if one[0] is first[0] and one[2] == first[2])),
        must_be_tls=first[1]
        and request.method is None
        and bool(first[0].protocols)
        and EgressProtocol.TCP not in first[0].protocols,
    )


@settings(max_examples=1000)
@given(st.lists(RULES, min_size=1, max_size=5), SOURCES, TARGETS, READ, KNOWN_ADDRESSES)
def test_a_decision_is_that_of_each_address_by_itself(
    rules: list[EgressRule], source: EgressSource, target: str, read: tuple[str, str] | None, addresses: list[str]
) -> None:
    method, path = read or (None, None)
    destination = parse_authority_form(target)
    assert isinstance(destination, Destination)
    expected = oracle(rules, source, EgressRequest(destination=destination, method=method, path=path), addresses)
    found = decide(rules, target, *addresses, source=source, method=method, path=path)
    assert found.is_allowed == expected.is_allowed, (found, expected)
    if found.is_allowed:
        assert msgspec.structs.replace(found, detail="") == expected


@given(st.lists(RULES, max_size=5), TARGETS, READ, ADDRESSES)
def test_a_decision_is_final_and_names_only_addresses_that_were_judged(
    rules: list[EgressRule], target: str, read: tuple[str, str] | None, addresses: list[str]
) -> None:
    method, path = read or (None, None)
    verdict = decide(rules, target, *(addresses or ["8.8.8.8"]), method=method, path=path)
    assert verdict.is_final
    assert verdict.is_allowed == bool(verdict.addresses)
    for one in verdict.addresses:
        alone = decide(rules, target, one, method=method, path=path)
        assert alone.is_allowed, "each address would be allowed by itself"


@given(st.lists(RULES, max_size=5), TARGETS, READ, ADDRESSES)
def test_more_deny_rules_never_allow_more(
    rules: list[EgressRule], target: str, read: tuple[str, str] | None, addresses: list[str]
) -> None:
    method, path = read or (None, None)
    before = decide(rules, target, *(addresses or ["8.8.8.8"]), method=method, path=path)
    deny = rule("zz", is_allow=False, priority=0)
    assert not decide([*rules, deny], target, *(addresses or ["8.8.8.8"]), method=method, path=path).is_allowed
    assert before.is_final


def test_a_bucket_lets_a_burst_through_and_then_its_rate() -> None:
    bucket = TokenBucket(rate=2.0, burst=3)
    assert [bucket.take(10.0) == 0 for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(10.5) == 0, bucket.take(10.5) == 0] == [True, False]
    assert [bucket.take(100.0) == 0 for _ in range(4)] == [True, True, True, False], "never more than the burst"
    assert (bucket.take(99.0) == 0) is False, "a clock that stands still gives nothing back"


def test_rules_of_many_sources_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datum_router.egress.decide.MAX_SOURCES", 2)
    table = EgressTable(EgressPolicy(rules=(rule(attachments=("default/web",)),)))
    for number in range(5):
        assert table.rules_for(EgressSource(namespaces=("default",), attachments=(f"default/{number}",))) == ()
    assert len(table.rules_for(SOURCE)) == 1
    assert table.rules_for(SOURCE) is table.rules_for(SOURCE)
