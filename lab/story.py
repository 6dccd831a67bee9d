"""What the lab shows, step by step; each step returns what it found wrong, in sentences, empty if all held."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lab.network import cut_off, encap_route, reconnect, segment_packets
from lab.plan import (
    AWS,
    BLUE,
    CLIENTS,
    GATEWAYS,
    GCP,
    PREM,
    PUBLIC_ADDRESS,
    TENANTS,
    VISITOR,
    Node,
    Pod,
    Tenant,
    backend,
)
from lab.traffic import Answer, Load, Wire, ask_many, health, tapped, wait_for

TENANT_REQUESTS = 1000
RATE = 100.0
LOAD_THREADS = 24
BEFORE_S = 2.0
AFTER_S = 3.0
SLOW_START_S = 4.0
"""As in lab/manifests."""
NOTICED_S = 0.1
"""From when a page says that an endpoint is out until every worker surely knows."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Logged:
    """A request as the gateway's access log has it; `began` is Unix time."""

    began: float
    status: int
    endpoint: str
    attempts: int


def gateway_is_ready() -> bool:
    """Tell whether every endpoint of every tenant's service was probed and found healthy."""
    for tenant in TENANTS:
        states = health(f"{tenant.name}/shop")
        if len(states) != 4 or set(states.values()) != {"healthy"}:
            return False
    return True


def example(say: Say) -> list[str]:
    """Send the example of the README: in at AWS, answered in GCP; show its path."""
    pod = backend(GCP, BLUE)
    before = segment_packets(pod)
    with tapped(AWS.name, b"GET /api/v1/users ") as wire:
        (answer,) = ask_many(VISITOR, PUBLIC_ADDRESS, name="blue.example.com", path="/api/v1/users", times=1)
    decapsulated = segment_packets(pod) - before
    out = [one for one in wire.marked if one.segment in (pod.segment4, pod.segment6)]
    say(f"  GET http://blue.example.com/api/v1/users from the visitor at the edge: {answer.status} by {answer.cloud}")
    say(f"    1 visitor > edge > Internet > AWS > router-gateway at {PUBLIC_ADDRESS}, which chooses blue/my-api")
    say(f"    2 out by {GATEWAYS[0].interface} (SO_BINDTODEVICE), blue's interface, to the AWS node")
    say(f"    3 route there: {encap_route(pod, AWS)}")
    for one in out[:1]:
        say(
            f"    4 seen on the Internet: {one.node} > {one.segment} [segment routing] {one.source} > {one.destination}"
        )
    say(f"    5 in GCP its segments took {decapsulated} packets out (probes among them), to blue's backend")
    wrong: list[str] = []
    if (answer.status, answer.cloud, answer.tenant) != (200, "gcp", "blue"):
        wrong.append(f"the example was answered with {answer}, expected 200 by gcp, blue")
    if not out or not decapsulated:
        wrong.append(f"the request was not seen in SRv6 to GCP ({len(out)} packets, {decapsulated} decapsulated)")
    wrong += _bare(wire)
    return wrong


def tenants(say: Say) -> list[str]:
    """Have both tenants ask from equal addresses, through their VPCs, and by name from the Internet."""
    wrong: list[str] = []
    for pod, gateway in zip(CLIENTS, GATEWAYS, strict=True):
        before = {one.host: segment_packets(one) for one in _backends(pod.tenant)}
        with tapped(AWS.name) as wire:
            answers = ask_many(pod.host, gateway.ipv6, name="shop.internal", path="/inside/cart", times=TENANT_REQUESTS)
        wrong += _own(pod.tenant, answers, f"from {pod.ipv6} at the edge, by the VPC")
        clouds = Counter(answer.cloud for answer in answers)
        families = Counter("IPv6" if ":" in answer.sender else "IPv4" for answer in answers)
        moved = sum(segment_packets(one) - before[one.host] for one in _backends(pod.tenant))
        say(
            f"  {pod.tenant.name}: {_count(pod.tenant, answers)} of {TENANT_REQUESTS} requests from {pod.ipv6} were "
            f"answered by its own backends ({_shares(clouds)}; {_shares(families)}; {moved} packets by its segments)"
        )
        if set(families) != {"IPv4", "IPv6"} or set(clouds) != {"gcp", "prem"}:
            wrong.append(f"{pod.tenant.name}: expected both clouds and both families, found {clouds} and {families}")
        if not moved:
            wrong.append(f"{pod.tenant.name}: its segments took no packet out")
        wrong += _bare(wire)
    for tenant in TENANTS:
        name = f"{tenant.name}.example.com"
        answers = ask_many(VISITOR, PUBLIC_ADDRESS, name=name, path="/shop", times=100)
        wrong += _own(tenant, answers, f"from the Internet as {name}")
    say("  and 100 of 100 each by name from the Internet" if not wrong else "  but not all went well")
    (stranger,) = ask_many(VISITOR, PUBLIC_ADDRESS, name="shop.internal", path="/inside/cart", times=1)
    say(f"  the same path from the Internet, by no attachment: {stranger.status}")
    if stranger.status != 404:
        wrong.append(f"a request by no attachment was answered with {stranger.status}, expected 404")
    return wrong


def failover(say: Say, log: Path) -> list[str]:
    """Cut GCP off under load, wait until its probes have failed, connect it again; judge every request."""
    pod = backend(GCP, BLUE)
    dead = (f"{pod.ipv4}:", f"[{pod.ipv6}]:")

    def is_out() -> bool:
        states = health("blue/shop")
        return all(state == "unhealthy" for key, state in states.items() if key.startswith(dead))

    def is_back() -> bool:
        return all(state == "healthy" for state in health("blue/shop").values())

    skew = time.time() - time.monotonic()  # from the clock of this program to that of the log
    with Load(
        VISITOR, PUBLIC_ADDRESS, name="blue.example.com", path="/shop", per_second=RATE, threads=LOAD_THREADS
    ) as load:
        time.sleep(BEFORE_S)
        cut_at = time.monotonic()
        cut_off(GCP)
        out_at = wait_for("probes of both endpoints in GCP fail", is_out)
        time.sleep(AFTER_S)
        joined_at = time.monotonic()
        reconnect(GCP)
        back_at = wait_for("probes of both endpoints in GCP pass", is_back)
        time.sleep(SLOW_START_S + AFTER_S)
    answers = load.answers
    cut_off_for = [one for one in answers if cut_at <= one.began < out_at + NOTICED_S]
    while_out = [one for one in answers if out_at + NOTICED_S <= one.began < joined_at]
    failed = [one for one in answers if one.status != 200]
    first = next((one.ended for one in answers if one.began > cut_at and one.cloud == "prem"), cut_at)
    say(f"  {len(answers)} requests at {RATE:g}/s; before: {_shares(_clouds(answers, 0, cut_at))}")
    say(f"  t=0.00 s  GCP is cut off: its packets vanish; first answer by on-prem after {first - cut_at:.2f} s")
    say(f"  t={out_at - cut_at:.2f} s  its probes have failed: {_failed_of(cut_off_for)} in flight until then")
    say(f"  after that {len(while_out)} requests: {_shares(Counter(one.cloud for one in while_out))}, "
        f"{sum(one.status != 200 for one in while_out)} failed")  # fmt: skip
    say(f"  t={joined_at - cut_at:.2f} s  GCP is connected again; probes pass after {back_at - joined_at:.2f} s")
    shares = [_share(answers, back_at + second, back_at + second + 1) for second in range(int(SLOW_START_S + AFTER_S))]
    say("  share of GCP, second by second: " + " ".join(f"{share:.0%}" for share in shares))
    wrong: list[str] = []
    astray = [one for one in failed if not cut_at - 2.0 <= one.began < out_at + NOTICED_S]
    if astray:
        wrong.append(f"{len(astray)} requests failed that were not in flight, the first: {astray[0]}")
    entries = read_log(log, "blue/public-shop")
    logged = [one for one in entries if out_at + NOTICED_S <= one.began - skew < joined_at]
    elsewhere = [one for one in entries if one.status != 200 and not one.endpoint.startswith(dead)]
    if elsewhere:
        wrong.append(f"{len(elsewhere)} requests failed that were not with GCP, the first: {elsewhere[0]}")
    sent = [one for one in logged if one.endpoint.startswith(dead) or one.attempts != 1]
    if sent or not logged:
        wrong.append(f"{len(sent)} of {len(logged)} requests went to GCP after its probes had failed: {sent[:1]}")
    if not while_out or any(one.cloud != "prem" for one in while_out):
        wrong.append("not every request was answered on-prem while GCP was out")
    end = sum(shares[-2:]) / 2
    if not (shares[0] < 0.8 * end and end > 0.3):
        wrong.append(f"GCP did not return gradually: {shares}, expected less at first than at the end")
    return wrong


def read_log(path: Path, route: str) -> list[Logged]:
    """Return the requests of a route in the gateway's access log."""
    found: list[Logged] = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry.get("route") != route or "duration_ms" not in entry:
            continue
        ended = datetime.fromisoformat(entry["time"]).timestamp()
        found.append(Logged(ended - entry["duration_ms"] / 1000, entry["status"], entry["endpoint"], entry["attempts"]))
    return found


def _backends(tenant: Tenant) -> tuple[Pod, ...]:
    return backend(GCP, tenant), backend(PREM, tenant)


def _count(tenant: Tenant, answers: Sequence[Answer]) -> int:
    return sum(answer.status == 200 and answer.tenant == tenant.name for answer in answers)


def _own(tenant: Tenant, answers: Sequence[Answer], how: str) -> list[str]:
    strays = [answer for answer in answers if answer.status != 200 or answer.tenant != tenant.name]
    return [f"{tenant.name} {how}: {len(strays)} of {len(answers)} not by its own, first {strays[0]}"] if strays else []


def _bare(wire: Wire) -> list[str]:
    return [f"{wire.bare} packets of tenants went over the Internet without SRv6"] if wire.bare else []


def _clouds(answers: Sequence[Answer], start: float, end: float) -> Counter[str]:
    return Counter(one.cloud for one in answers if start <= one.began < end)


def _share(answers: Sequence[Answer], start: float, end: float, node: Node = GCP) -> float:
    clouds = _clouds(answers, start, end)
    return clouds[node.name] / max(1, clouds.total())


def _shares(counts: Counter[str]) -> str:
    return ", ".join(f"{name or 'none'} {count}" for name, count in sorted(counts.items()))


def _failed_of(answers: Sequence[Answer]) -> str:
    return f"{sum(one.status != 200 for one in answers)} of {len(answers)} requests failed,"
