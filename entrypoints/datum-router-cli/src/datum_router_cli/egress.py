"""`datum-router explain --egress`: whether VPCEgresses let traffic go somewhere, and what each of them says."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
from rich.console import Console

from datum_router.egress.address import ClosedRanges, parse_address, parse_networks
from datum_router.egress.decide import EgressRequest, EgressTable, Holds, RuleVerdict, Verdict
from datum_router.egress.destination import (
    BadDestination,
    Destination,
    parse_authority_form,
    parse_destination,
)
from datum_router.errors import ConfigError
from datum_router.model.egress import EgressPolicy, EgressReason, EgressRule, EgressSource
from datum_router.policy.explain import PolicyReport, explain_policy, policy_lines
from datum_router.reasons import Reason
from datum_router.routing.normalize import BadHost, BadPath, normalize_target, parse_authority
from datum_router_cli.identity import describe_tls
from datum_router_cli.load import Loaded
from datum_router_cli.output import printable, say

_URL = re.compile(r"http://([^/?#]+)([/?].*)?\Z")


class EgressTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for traffic that a VPCEgress lets through.

    Attributes:
        rule: The one that decided.
        policy: Retries and time limits of a request that can be read; None for a tunnel.
        tls: How TLS is spoken to the destination in place of plain HTTP; empty if it is not.
    """

    rule: EgressRule
    policy: PolicyReport | None
    tls: str

    def document(self) -> dict[str, object]:
        """Return it as plain data. Seconds; null: no limit of that kind, or none of this VPCEgress."""
        rule = self.rule
        is_tunnel = self.policy is None
        return {
            "rateLimit": {"requestsPerSecond": rule.rate, "burstSize": rule.burst} if rule.rate else None,
            "maxRetries": rule.retry.max_retries,
            "retryOn": [] if self.policy is None else list(self.policy.retry_on),
            "timeouts": {
                "request": None if self.policy is None else self.policy.request_s,
                "connect": rule.timeouts.connect_s,
                "streamIdle": rule.idle_s if is_tunnel else None,
            },
            "tls": self.tls,
        }

    def lines(self) -> list[str]:
        """Return it as lines for people."""
        rule = self.rule
        said = ["rate limit: none"]
        if rule.rate:
            said = [f"rate limit: {rule.rate:g} a second and {rule.burst} at once, in each worker; 429 beyond it"]
        if self.policy is not None:
            way = self.tls or "plain HTTP"
            return [*said, *policy_lines(self.policy), f"sent on by {way}"]
        others = rule.retry.max_retries
        said.append(f"retries: up to {others} of its other addresses are dialled" if others else "retries: none")
        limits = (("connect", rule.timeouts.connect_s), ("silence", rule.idle_s))
        own = ", ".join(f"{name} {seconds:g} s" for name, seconds in limits if seconds)
        return [*said, f"timeouts: {own or 'those of the data plane'}"]


def terms_of(verdict: Verdict, request: EgressRequest) -> EgressTerms | None:
    """Return what holds for traffic that is let through; None if it is not, or not yet known to be."""
    rule = verdict.rule
    if not verdict.is_allowed or rule is None:
        return None
    if request.method is None:
        return EgressTerms(rule=rule, policy=None, tls="")
    tls = None if verdict.target is None else verdict.target.tls
    return EgressTerms(
        rule=rule,
        policy=explain_policy(rule.retry, rule.timeouts, request.method),
        tls="" if tls is None else describe_tls(tls),
    )


class EgressReport(msgspec.Struct, frozen=True, kw_only=True):
    """The answer.

    Attributes:
        verdict: Not final if it depends on addresses that were not given.
        rules: Every rule in order, with what it says.
    """

    request: EgressRequest
    source: EgressSource
    verdict: Verdict
    addresses: tuple[str, ...]
    rules: tuple[tuple[EgressRule, RuleVerdict], ...]

    def document(self) -> dict[str, object]:
        """Return it as plain data."""
        verdict, terms = self.verdict, terms_of(self.verdict, self.request)
        return {
            "destination": str(self.request.destination),
            "source": self.source.name,
            "verdict": self._word(),
            "reason": verdict.reason.value if verdict.is_final else "",
            "detail": verdict.detail,
            "egress": verdict.policy,
            "addresses": list(verdict.addresses),
            "mustBeTls": verdict.must_be_tls,
            "terms": None if terms is None else terms.document(),
            "rules": [
                {
                    "egress": rule.name,
                    "policy": "Allow" if rule.is_allow else "Deny",
                    "priority": rule.priority,
                    "holds": found.holds.name.lower(),
                    "why": found.why,
                }
                for rule, found in self.rules
            ],
        }

    def print(self, console: Console) -> None:
        """Print it for people."""
        verdict = self.verdict
        by = f" by vpcegress {verdict.policy}" if verdict.policy else ""
        say(console, f"{self.request.destination} from {printable(self.source.name)}")
        if not verdict.is_final:
            say(console, "depends on the addresses of the name: give them by --address")
        else:
            say(console, f"{self._word()}: {verdict.reason.value}{by}")
            if verdict.detail:
                say(console, f"  {verdict.detail}")
            if verdict.reason is EgressReason.UNKNOWN_SOURCE:
                say(console, "  --from says it here, `run --egress-source` or DATUM_ROUTER_EGRESS_SOURCE to a gateway")
            if verdict.addresses:
                say(console, f"  may be dialled: {', '.join(verdict.addresses)}")
            if verdict.must_be_tls:
                say(console, "  the bytes must begin with a TLS handshake for the name")
            terms = terms_of(verdict, self.request)
            for line in [] if terms is None else terms.lines():
                say(console, f"  {line}")
        if self.rules:
            say(console, "rules, the first that holds decides:")
        for rule, found in self.rules:
            what = {Holds.YES: "holds", Holds.NO: "no", Holds.ADDRESS: "perhaps"}[found.holds]
            why = f": {found.why}" if found.why else ""
            kind = "Allow" if rule.is_allow else "Deny"
            say(console, f"  {what:8}{kind} {printable(rule.name)} (priority {rule.priority}){why}")

    def _word(self) -> str:
        if not self.verdict.is_final:
            return "unknown"
        return "allow" if self.verdict.is_allowed else "deny"


def ask_about_egress(method: str, url: str) -> EgressRequest:
    """Read what is asked about: `CONNECT HOST:PORT`, `TLS HOST[:PORT]`, or a method and an http URL.

    Raises:
        ConfigError: It is no destination: a gateway would refuse it, too.
    """
    if method in ("CONNECT", "TLS"):
        text = url if method == "CONNECT" or ":" in url else f"{url}:443"
        return EgressRequest(destination=_good(parse_authority_form(text), url), is_tls=method == "TLS")
    match = _URL.match(url)
    if match is None:
        raise ConfigError(
            f"URL: found {url!r}, expected http://HOST[:PORT]/PATH, or CONNECT HOST:PORT for everything else",
            reason=Reason.INVALID_VALUE,
        )
    parsed = parse_authority(match[1])
    path = normalize_target((match[2] or "/").encode("utf-8", "replace"))
    if isinstance(parsed, BadHost) or isinstance(path, BadPath):
        said = parsed.detail if isinstance(parsed, BadHost) else path.detail if isinstance(path, BadPath) else ""
        raise ConfigError(f"URL: found {said} in {url!r}; a gateway answers 400", reason=Reason.INVALID_VALUE)
    destination = _good(parse_destination(parsed.host, parsed.port or 80), url)
    return EgressRequest(destination=destination, method=method, path=path.path)


def _good(found: Destination | BadDestination, text: str) -> Destination:
    if isinstance(found, BadDestination):
        raise ConfigError(
            f"URL: found {found.detail} in {text!r}, expected HOST:PORT with one plain reading; a gateway refuses it "
            f"({EgressReason.BAD_DESTINATION})",
            reason=Reason.INVALID_VALUE,
        )
    return found


def explain_egress(
    loaded: Loaded, request: EgressRequest, *, source: str, source_ip: str, addresses: Sequence[str]
) -> EgressReport:
    """Return what the VPCEgresses of a directory say.

    Args:
        source: `namespace/name` of a VPCAttachment or `namespace/`; empty = whose address `source_ip` is.
        addresses: Those that the name is supposed to have.

    Raises:
        ConfigError: An address is none, or the environment has settings that cannot be used.
    """
    for text in addresses:
        if parse_address(text) is None:
            raise ConfigError(f"--address: found {text!r}, expected an IP address", reason=Reason.INVALID_VALUE)
    try:
        closed = ClosedRanges(parse_networks(loaded.settings.data_plane_config.get("egress_closed", "")))
    except ValueError as error:
        raise ConfigError(
            f"egress_closed: found {str(error)!r}, expected networks", reason=Reason.INVALID_VALUE
        ) from error
    table = EgressTable(loaded.data.egress or EgressPolicy(), closed)
    named = source if source and not source.endswith("/") else ""
    who = table.identify(interface=named, address=source_ip, configured=source)
    verdict = table.judge_name(who, request)
    if not verdict.is_final and addresses:
        verdict = table.judge_addresses(who, request, addresses)
    known = request.destination.address or next(iter(addresses), "")
    return EgressReport(
        request=request,
        source=who,
        verdict=verdict,
        addresses=tuple(addresses),
        rules=tuple(table.explain(who, request, known or None)),
    )
