"""Egress decisions: a function of policy, source, what is asked for, and addresses. Pure.

Theory of operation. A decision has two stages. `judge_name` looks at what is known before a name is resolved: if the
policy cannot allow the destination whatever it resolves to, that is the end, and no name server hears of it (a name
is a message, too). `judge_addresses` looks at each address that the name has; those that are allowed are what may be
dialled, and nothing else: so a name server that answers otherwise a moment later changes nothing.

Rules stand in one order: lower priority first, Deny before Allow, then by name. The first rule that holds decides. If
none does, the first `defaultAction` of the rules that are about the source decides, else it is denied. What closed
ranges (`egress.address`) and closed names hold is denied even then, unless the rule that allows it opens it by name.

What cannot be read holds against the traffic: a Deny rule with methods or paths holds for bytes whose method nobody can
read, an Allow rule does not; and likewise with labels of a source that are not known.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from datum_router.egress.address import (
    Address,
    ClosedRanges,
    Network,
    RangeKind,
    dialled,
    faces,
    is_within,
    parse_address,
    parse_network,
)
from datum_router.egress.destination import Destination
from datum_router.model.egress import (
    EgressPolicy,
    EgressProtocol,
    EgressReason,
    EgressRule,
    EgressSource,
    EgressTarget,
)
from datum_router.routing.host import host_matches

CLOSED_NAMES: Final = (
    "localhost",
    "*.localhost",
    "localhost.localdomain",
    "ip6-localhost",
    "ip6-loopback",
    "metadata",
    "metadata.google.internal",
    "*.metadata.google.internal",
    "metadata.goog",
    "*.metadata.goog",
    "metadata.azure.internal",
    "metadata.tencentyun.com",
    "instance-data",
    "instance-data.ec2.internal",
    "kubernetes",
    "kubernetes.default",
    "*.svc",
    "*.cluster.local",
    "*.pod",
)
"""Names of what is inside: denied unless an Allow rule has the name, or a wildcard that lies within the closed one."""

MAX_SOURCES: Final = 4096
"""Sources whose rules are remembered; more than these at a time are looked through again."""

ENDS_IN_TLS: Final = frozenset((EgressProtocol.TLS, EgressProtocol.HTTPS))
_HTTP: Final = frozenset((EgressProtocol.TCP, EgressProtocol.HTTP))
_OPAQUE: Final = frozenset((EgressProtocol.TCP, *ENDS_IN_TLS))


class EgressRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for.

    Attributes:
        method, path: Of a request that can be read; None for bytes that cannot. The path is normalised.
        is_tls: The bytes are known to begin with a ClientHello for the destination's name (or without one).
    """

    destination: Destination
    method: str | None = None
    path: str | None = None
    is_tls: bool = False

    @property
    def protocols(self) -> frozenset[EgressProtocol]:
        """Return as what it may pass: bytes of a tunnel as TLS as well, if they turn out to be (`must_be_tls`)."""
        return _HTTP if self.method is not None else _OPAQUE


class Holds(enum.Enum):
    """Whether a rule holds for a request."""

    NO = "no"
    YES = "yes"
    ADDRESS = "depends on the address"


class RuleVerdict(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One rule on one request; `why` is the first condition that does not hold, or what it depends on."""

    holds: Holds
    why: str = ""
    is_unreadable: bool = False


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A decision.

    Attributes:
        is_final: False: the name has to be resolved first, and `judge_addresses` be asked; `is_allowed` is False then.
        rule: The rule that decided; None if none did.
        addresses: What may be dialled, in the order in which the name has them; empty unless allowed and final.
        target: The rule's destination that is meant, if it has any.
        must_be_tls: Allowed as TLS alone: the bytes have to begin with a ClientHello for the destination's name.
        detail: What was found, for people; never a client's text.
    """

    is_allowed: bool
    reason: EgressReason
    is_final: bool = True
    rule: EgressRule | None = None
    addresses: tuple[str, ...] = ()
    target: EgressTarget | None = None
    must_be_tls: bool = False
    detail: str = ""

    @property
    def policy(self) -> str:
        """Return `namespace/name` of the VPCEgress that decided, empty if none did."""
        return "" if self.rule is None else self.rule.name


def denied(reason: EgressReason, detail: str, rule: EgressRule | None = None) -> Verdict:
    """Return a final verdict that denies."""
    return Verdict(is_allowed=False, reason=reason, rule=rule, detail=detail)


class _Rule:
    """A rule with its networks and names at hand."""

    __slots__ = ("attachments", "exact", "labels", "networks", "rule", "target_hosts", "wildcards")

    def __init__(self, rule: EgressRule) -> None:
        self.rule = rule
        self.attachments = None if rule.attachments is None else frozenset(rule.attachments)
        self.networks: tuple[Network, ...] = tuple([parse_network(text) for text in rule.networks])
        self.exact = frozenset(name for name in rule.hostnames if not name.startswith("*."))
        self.wildcards = tuple(name for name in rule.hostnames if name.startswith("*."))
        self.target_hosts = tuple((one, parse_address(one.host)) for one in rule.targets)
        self.labels = tuple(sorted((rule.source_labels or {}).items()))

    def is_about(self, source: EgressSource) -> bool:
        """Tell whether the traffic of a source is this rule's business."""
        if self.attachments is None:
            return self.rule.namespace in source.namespaces
        return not self.attachments.isdisjoint(source.attachments)

    def judge(self, source: EgressSource, request: EgressRequest, face: Address | None) -> RuleVerdict:
        """Return whether all conditions hold.

        Args:
            face: One address that is judged, None if it is not known yet.
        """
        rule, wanted = self.rule, request.destination
        if self.labels:
            if source.labels is None:
                if rule.is_allow:
                    return _no("the labels of the source are not known")
            elif any(source.labels.get(key) != value for key, value in self.labels):
                return _no("the source has other labels (sourceLabels)")
        if rule.ports and wanted.port not in rule.ports:
            return _no(f"port {wanted.port} is none of {', '.join(map(str, rule.ports))} (destinationPorts)")
        if rule.protocols and request.protocols.isdisjoint(rule.protocols):
            return _no(f"the protocol is none of {', '.join(rule.protocols)} (protocols)")
        if rule.hostnames and not self._has_name(wanted.name):
            return _no("no host name of it matches (hostnames)" if wanted.name else "an address has no host name")
        is_unreadable = False
        if rule.methods or rule.paths:
            if request.method is None:
                if rule.is_allow:
                    return _no("method and path cannot be read (methods, pathPrefixes)")
                is_unreadable = True
            elif rule.methods and request.method not in rule.methods:
                return _no(f"the method is none of {', '.join(rule.methods)} (methods)")
            elif rule.paths and not any(_is_below(request.path or "", one) for one in rule.paths):
                return _no("the path begins with none of its prefixes (pathPrefixes)")
        needs_address = False
        if self.target_hosts:
            found = self._target(wanted, face)
            if found is Holds.NO:
                return _no("it is none of its destinations (destinations)")
            needs_address = found is Holds.ADDRESS
        if self.networks:
            if face is None:
                needs_address = True
            elif not any(face.version == one.version and face in one for one in self.networks):
                return _no("no network of it holds the address (destinationCidrs)")
        if needs_address:
            return RuleVerdict(holds=Holds.ADDRESS, why="the address decides", is_unreadable=is_unreadable)
        return RuleVerdict(holds=Holds.YES, is_unreadable=is_unreadable)

    def _has_name(self, name: str) -> bool:
        return bool(name) and (name in self.exact or any(host_matches(one, name) for one in self.wildcards))

    def _target(self, wanted: Destination, face: Address | None) -> Holds:
        found = Holds.NO
        for target, address in self.target_hosts:
            if target.port != wanted.port:
                continue
            if address is None:
                if target.host == wanted.name:
                    return Holds.YES
            elif face is None:
                found = Holds.ADDRESS
            elif face in faces(address):
                return Holds.YES
        return found

    def target(self, wanted: Destination, address: Address) -> EgressTarget | None:
        """Return the destination of the rule that a request is for."""
        for target, literal in self.target_hosts:
            if target.port == wanted.port and (target.host == wanted.name or literal in (address, *faces(address))):
                return target
        return None

    def opens(self, face: Address, closed: Network, port: int) -> bool:
        """Tell whether the rule names an address in a closed range: by a network within that range, or itself."""
        if any(is_within(one, closed) and face in one for one in self.networks if one.version == face.version):
            return True
        return any(
            literal is not None and one.port == port and face in faces(literal) for one, literal in self.target_hosts
        )

    def opens_name(self, name: str, closed: str) -> bool:
        """Tell whether the rule names a closed name: by itself, or by a wildcard that lies within the closed one."""
        if name in self.exact or any(target.host == name for target, _ in self.target_hosts):
            return True
        return any(
            host_matches(one, name) and (one == closed or host_matches(closed, one[2:])) for one in self.wildcards
        )


def _no(why: str) -> RuleVerdict:
    return RuleVerdict(holds=Holds.NO, why=why)


def _is_below(path: str, prefix: str) -> bool:
    """Tell whether a path begins with whole segments (as routes match: threat C7)."""
    bare = prefix.rstrip("/")
    return path == bare or path.startswith(f"{bare}/") or not bare


class EgressTable:
    """A policy ready to be asked.

    Args:
        closed: Which ranges are closed here.
    """

    __slots__ = ("_ambiguous", "_by_address", "_by_name", "_by_vpc", "_closed", "_rules", "_rules_for", "policy")

    def __init__(self, policy: EgressPolicy, closed: ClosedRanges | None = None) -> None:
        self.policy = policy
        self._closed = closed or ClosedRanges()
        self._rules = tuple(_Rule(rule) for rule in policy.rules)
        self._rules_for: dict[tuple[tuple[str, ...], tuple[str, ...]], tuple[_Rule, ...]] = {}
        self._by_name = {one.name: one for one in policy.attachments}
        self._by_vpc: dict[tuple[str, str], str] = {}
        self._by_address: dict[str, str] = {}
        self._ambiguous: set[str] = set()
        doubled: set[tuple[str, str]] = set()
        for one in policy.attachments:
            for address in one.addresses:
                if self._by_address.setdefault(address, one.name) != one.name:
                    self._ambiguous.add(address)
                if self._by_vpc.setdefault((one.vpc, address), one.name) != one.name:
                    doubled.add((one.vpc, address))
        for key in doubled:
            del self._by_vpc[key]

    # --- the source ------------------------------------------------------------------------------------------------

    def identify(self, *, interface: str, address: str, configured: str) -> EgressSource:
        """Return whose traffic it is.

        The interface that a connection came in by says which VPC it is from, and no client can lie about it; within
        that VPC the address says which attachment. Without an interface the address has to be that of one attachment
        only: two VPCs may have equal ones. If nobody is found it is whose the listener was told to take it for.

        Args:
            interface: The gateway's attachment (`namespace/name`) of that interface, empty if there is none.
            configured: See `EgressListener.source`.
        """
        near: list[str] = []
        if interface:
            known = self._by_name.get(interface)
            if known is not None and known.vpc:
                found = self._by_vpc.get((known.vpc, address))
                if found is not None:
                    near.append(found)
            if interface not in near:
                near.append(interface)
        elif address in self._by_address and address not in self._ambiguous:
            near.append(self._by_address[address])
        elif configured and not configured.endswith("/"):
            near.append(configured)
        if not near:
            namespace = configured.removesuffix("/")
            return EgressSource(namespaces=(namespace,) if namespace else (), address=address)
        first = self._by_name.get(near[0])
        return EgressSource(
            attachments=tuple(near),
            namespaces=tuple(dict.fromkeys(one.partition("/")[0] for one in near)),
            labels=None if first is None else first.labels,
            address=address,
        )

    # --- the decision ----------------------------------------------------------------------------------------------

    def judge_name(self, source: EgressSource, request: EgressRequest) -> Verdict:
        """Return the verdict, or one that is not final: then the destination's name has to be resolved."""
        if not source.namespaces:
            return denied(EgressReason.UNKNOWN_SOURCE, "it is not known whose traffic this is")
        rules = self.rules_for(source)
        if not rules:
            return denied(EgressReason.NO_POLICY, "no VPCEgress is about this source, so nothing may leave")
        wanted = request.destination
        literal = parse_address(wanted.address) if wanted.address else None
        if literal is not None:
            return self._judge_all(rules, source, request, (literal,))
        last: Verdict | None = None
        for one in rules:
            found = one.judge(source, request, None)
            if found.holds is Holds.NO:
                continue
            verdict = self._by_rule(one, found, request)
            if verdict.is_allowed:
                closed = closed_name(wanted.name)
                if closed and not one.opens_name(wanted.name, closed):
                    verdict = denied(EgressReason.CLOSED_NAME, f"names of {closed} are closed", one.rule)
            if verdict.is_allowed:  # by this rule or, if that depends on the address, perhaps
                return _unresolved()
            if last is None or found.holds is Holds.YES:
                last = verdict
            if found.holds is Holds.YES:
                return verdict
        verdict = _by_default(rules)
        if not verdict.is_allowed:
            # What may be denied by an address is denied in any case: nobody need be asked for it.
            return last or verdict
        closed = closed_name(wanted.name)
        if closed:
            return denied(EgressReason.CLOSED_NAME, f"names of {closed} are closed", verdict.rule)
        return _unresolved()

    def judge_addresses(self, source: EgressSource, request: EgressRequest, addresses: Iterable[str]) -> Verdict:
        """Return the verdict on a name that has these addresses; it is final.

        If rules differ for them, the rule of the first that is allowed decides, and only its addresses may be dialled.
        """
        rules = self.rules_for(source)
        if not source.namespaces or not rules:
            return self.judge_name(source, request)
        parsed = [found for text in addresses if (found := parse_address(text)) is not None]
        if not parsed:
            return denied(EgressReason.NAME_NOT_FOUND, "the name has no address")
        return self._judge_all(rules, source, request, parsed)

    def rules_for(self, source: EgressSource) -> tuple[_Rule, ...]:
        """Return the rules that are about a source, in order; remembered, since sources come again and again."""
        key = (source.attachments, source.namespaces)
        found = self._rules_for.get(key)
        if found is None:
            if len(self._rules_for) >= MAX_SOURCES:
                self._rules_for.clear()
            found = self._rules_for[key] = tuple([one for one in self._rules if one.is_about(source)])
        return found

    def explain(
        self, source: EgressSource, request: EgressRequest, address: str | None
    ) -> list[tuple[EgressRule, RuleVerdict]]:
        """Return every rule with what it says of one address, in order; those that are not about the source, too.

        Args:
            address: None = not known.
        """
        parsed = parse_address(address) if address else None
        face = faces(parsed)[0] if parsed is not None else None
        return [
            (
                one.rule,
                one.judge(source, request, face)
                if one.is_about(source)
                else _no("it is about other traffic (sourceVpcAttachment, sourceSelector or namespace)"),
            )
            for one in self._rules
        ]

    def closed_range(self, address: str) -> tuple[Network, RangeKind] | None:
        """Return the closed range that an address, or what it carries, is in."""
        parsed = parse_address(address)
        for face in () if parsed is None else faces(parsed):
            found = self._closed.find(face)
            if found is not None:
                return found
        return None

    def _judge_all(
        self, rules: Sequence[_Rule], source: EgressSource, request: EgressRequest, addresses: Sequence[Address]
    ) -> Verdict:
        refused: Verdict | None = None
        first: Verdict | None = None
        allowed: dict[str, None] = {}
        for address in addresses:
            verdict = self._judge(rules, source, request, address)
            if not verdict.is_allowed:
                refused = refused or verdict
            elif first is None or (verdict.rule is first.rule and verdict.target == first.target):
                first = first or verdict
                allowed[str(dialled(address))] = None
        if first is not None:
            return msgspec.structs.replace(first, addresses=tuple(allowed))
        assert refused is not None
        return refused

    def _judge(self, rules: Sequence[_Rule], source: EgressSource, request: EgressRequest, address: Address) -> Verdict:
        """Return the verdict on one address: that on each of its faces, the worst of which counts."""
        last: Verdict | None = None
        for face in faces(address):
            last = self._judge_face(rules, source, request, face)
            if not last.is_allowed:
                return last
        assert last is not None
        if last.rule is None:
            return last
        one = next(one for one in rules if one.rule is last.rule)
        return msgspec.structs.replace(last, target=one.target(request.destination, address))

    def _judge_face(
        self, rules: Sequence[_Rule], source: EgressSource, request: EgressRequest, face: Address
    ) -> Verdict:
        decider: _Rule | None = None
        verdict = _by_default(rules)
        for one in rules:
            found = one.judge(source, request, face)
            if found.holds is Holds.YES:
                decider, verdict = one, self._by_rule(one, found, request)
                break
        if not verdict.is_allowed:
            return verdict
        name = request.destination.name
        closed = closed_name(name)
        if closed and (decider is None or not decider.opens_name(name, closed)):
            return denied(EgressReason.CLOSED_NAME, f"names of {closed} are closed", verdict.rule)
        found_range = self._closed.find(face)
        if found_range is not None:
            network, kind = found_range
            is_nowhere = kind is RangeKind.UNSPECIFIED  # no destination at all: the kernel takes it for loopback
            if is_nowhere or decider is None or not decider.opens(face, network, request.destination.port):
                return denied(
                    EgressReason.CLOSED_ADDRESS, f"an address in {network} ({kind}), which no rule opens", verdict.rule
                )
        return verdict

    @staticmethod
    def _by_rule(one: _Rule, found: RuleVerdict, request: EgressRequest) -> Verdict:
        rule = one.rule
        if not rule.is_allow:
            if found.is_unreadable:
                return denied(EgressReason.UNREADABLE, "a Deny rule has methods or paths, which cannot be read", rule)
            return denied(EgressReason.DENIED_BY_RULE, "a Deny rule holds", rule)
        return Verdict(
            is_allowed=True,
            reason=EgressReason.ALLOWED_BY_RULE,
            rule=rule,
            must_be_tls=bool(rule.protocols)
            and request.method is None
            and not request.is_tls
            and EgressProtocol.TCP not in rule.protocols,
        )


def closed_name(name: str) -> str:
    """Return the closed name that a host name falls under, empty if there is none."""
    return next((one for one in CLOSED_NAMES if name and host_matches(one, name)), "")


def in_order(rules: Iterable[EgressRule]) -> tuple[EgressRule, ...]:
    """Return rules in the order in which they are asked."""
    return tuple(sorted(rules, key=lambda rule: (rule.priority, rule.is_allow, rule.name)))


def _by_default(rules: Sequence[_Rule]) -> Verdict:
    for one in rules:
        if one.rule.is_default_allow is not None:
            if one.rule.is_default_allow:
                return Verdict(is_allowed=True, reason=EgressReason.ALLOWED_BY_DEFAULT, rule=one.rule)
            return denied(EgressReason.DENIED_BY_DEFAULT, "no rule holds, and defaultAction is Deny", one.rule)
    return denied(EgressReason.DENIED_BY_DEFAULT, "no rule holds, and what is not allowed is denied")


def _unresolved() -> Verdict:
    return Verdict(
        is_allowed=False, is_final=False, reason=EgressReason.DENIED_BY_DEFAULT, detail="the name must be resolved"
    )
