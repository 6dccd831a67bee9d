"""What the lab shows, step by step; each step returns what it found wrong, in sentences, empty if all held."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lab.cluster import MANIFESTS, Cluster
from lab.network import encap_route, segment_packets
from lab.plan import (
    AWS,
    BLUE,
    CLIENTS,
    DISCOVERY_PORT,
    EDGE,
    GATEWAYS,
    GCP,
    PREM,
    PUBLIC_ADDRESS,
    REMOTES,
    TENANTS,
    VISITOR,
    Node,
    Pod,
    Tenant,
    backend,
)
from lab.processes import Processes
from lab.traffic import Answer, Wire, ask_many, health, page, tapped, wait_for
from lab.verdict import Logged, SliceSeen, read_log, slice_of

TENANT_REQUESTS = 1000
CONSENT_REQUESTS = 100
TAKEN_BACK = '{"spec": {"exportTo": null}}'
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
API_ROUTE = "blue/public-api"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Lab:
    """What is built.

    Attributes:
        clusters: By the names of their nodes.
    """

    clusters: Mapping[str, Cluster]
    processes: Processes

    @property
    def here(self) -> Cluster:
        """AWS's cluster, where the gateway is."""
        return self.clusters[AWS.name]

    def slices(self) -> list[SliceSeen]:
        """Return what discovery has published in AWS."""
        items = self.here.get(SLICES)["items"]
        assert isinstance(items, list)
        return [one for one in map(slice_of, items) if one is not None]

    def log(self, route: str, *, skew_s: float = 0.0) -> list[Logged]:
        """Return what the gateway's access log says of a route."""
        return read_log(self.processes.log("gateway").read_text(), route, skew_s=skew_s)


def gateway_is_ready() -> bool:
    """Tell whether every endpoint of every tenant's service was probed and found healthy."""
    for tenant in TENANTS:
        states = health(f"{tenant.name}/shop")
        if len(states) != 4 or set(states.values()) != {"healthy"}:
            return False
    return True


def join(lab: Lab, say: Say) -> list[str]:
    """Have AWS route to services that other clouds' clusters export, one cloud after the other."""
    lab.here.apply(MANIFESTS / AWS.name)
    lab.here.join([lab.clusters[node.name] for node in REMOTES])
    say("  kubectl apply -f lab/manifests/aws  and a Secret with a kubeconfig for each of GCP and on-prem")
    wait_for("discovery reads GCP's and on-prem's clusters", lambda: _ready_clusters() == {one.name for one in REMOTES})
    wrong: list[str] = []
    wait_for("the routes are in force", lambda: _status("/shop") != 404)
    if (status := _status("/shop")) != 503:
        wrong.append(f"before anything was exported the route answered {status}, expected 503")
    say(f"  both clusters are read by AWS's discovery; nothing is exported yet, so /shop is answered with {status}")
    for node in REMOTES:
        began = time.monotonic()
        lab.clusters[node.name].apply(MANIFESTS / node.name)
        applied = time.monotonic()
        at = wait_for(f"AWS answers from {node.title}", functools.partial(_answers_from, node))
        say(
            f"  kubectl apply -f lab/manifests/{node.name}  in its cluster took {applied - began:.1f} s; "
            f"{max(0.0, at - applied):.1f} s later a request in AWS is answered by {node.title}"
        )
    wait_for("every backend is probed healthy through its VPC", gateway_is_ready)
    say("  EndpointSlices in AWS's cluster, as discovery wrote them:")
    found = sorted(lab.slices(), key=lambda one: (one.annotations["vpc"], one.service, one.cluster, one.endpoints))
    for one in found:
        vpc, place = one.annotations["vpc"], one.annotations.get("location", "")
        addresses = " ".join(address for address, _ in one.endpoints)
        say(f"    {one.service:<7} of cluster {one.cluster:<5} in VPC {vpc:<10} {addresses:<13} {place}".rstrip())
    expected = {(tenant.name, "shop", node.name) for tenant in TENANTS for node in REMOTES}
    expected |= {(tenant.name, "my-api", GCP.name) for tenant in TENANTS}
    if {(one.annotations["vpc"].partition("/")[0], one.service, one.cluster) for one in found} != expected:
        wrong.append(f"discovery published {found}, expected slices of {sorted(expected)}")
    wait_for("the controller tells of all endpoints", lambda: _endpoint_count(lab) == 4)
    say("  kubectl -n blue get vpcservices,vpcroutes")
    for line in lab.here.kubectl("-n", "blue", "get", "vpcservices,vpcroutes").splitlines():
        say(f"    {line}".rstrip())
    return wrong


def consent(lab: Lab, say: Say) -> list[str]:
    """Have on-prem take an export back, and give it again."""
    cluster = lab.clusters[PREM.name]
    pod = backend(PREM, BLUE)
    cluster.kubectl("-n", "blue", "patch", "vpcservice", "shop", "--type=merge", "-p", TAKEN_BACK)
    patched = time.monotonic()
    say(f"  kubectl -n blue patch vpcservice shop --type=merge -p '{TAKEN_BACK}'  in on-prem's cluster")
    wait_for("on-prem's slices are gone", lambda: not _published(lab, PREM))
    at = wait_for("the gateway knows no endpoint on-prem", lambda: not _known(pod))
    answers = ask_many(VISITOR, PUBLIC_ADDRESS, name="blue.example.com", path="/shop", times=CONSENT_REQUESTS)
    clouds = Counter(one.cloud or str(one.status) for one in answers)
    say(f"  {at - patched:.1f} s later its endpoints have left AWS; {CONSENT_REQUESTS} requests: {shown(clouds)}")
    cluster.apply(MANIFESTS / PREM.name)
    applied = time.monotonic()
    at = wait_for("every backend is probed healthy again", gateway_is_ready)
    say(f"  kubectl apply gives it again; {max(0.0, at - applied):.1f} s later its endpoints are there and healthy")
    return [] if clouds.keys() == {GCP.name} else [f"after on-prem took its export back, requests went to {clouds}"]


def _published(lab: Lab, node: Node) -> list[SliceSeen]:
    return [one for one in lab.slices() if one.cluster == node.name and one.annotations["vpc"].startswith("blue/")]


def _known(pod: Pod) -> list[str]:
    return [one for one in health("blue/shop") if one.startswith((f"{pod.ipv4}:", f"[{pod.ipv6}]:"))]


def _ready_clusters() -> set[str]:
    found = page(AWS.name, DISCOVERY_PORT, "/clusters")
    assert isinstance(found, list)
    return {
        one["name"]
        for one in found
        if any(what["type"] == "Ready" and what["status"] == "True" for what in one["conditions"])
    }


def _status(path: str) -> int:
    (answer,) = ask_many(VISITOR, PUBLIC_ADDRESS, name="blue.example.com", path=path, times=1)
    return answer.status


def _answers_from(node: Node) -> bool:
    answers = ask_many(VISITOR, PUBLIC_ADDRESS, name="blue.example.com", path="/shop", times=4)
    return node.name in {one.cloud for one in answers}


def _endpoint_count(lab: Lab) -> int:
    status = lab.here.get("/apis/router.datum.net/v1alpha1/namespaces/blue/vpcservices/shop").get("status")
    return status.get("endpointCount", 0) if isinstance(status, dict) else 0


def example(lab: Lab, say: Say) -> list[str]:
    """Send the example of the README: in at AWS, answered in GCP; show its path."""
    pod, path = backend(GCP, BLUE), "/api/v1/users"
    before = segment_packets(pod)
    with tapped(AWS.name, f"GET {path} ".encode()) as wire:
        (answer,) = ask_many(VISITOR, PUBLIC_ADDRESS, name="blue.example.com", path=path, times=1)
    decapsulated = segment_packets(pod) - before
    address = pod.ipv6 if answer.sender.startswith("fd") else pod.ipv4
    out = [one for one in wire.marked if one.segment in (pod.segment4, pod.segment6)]
    wait_for("the request is in the access log", lambda: bool(lab.log(API_ROUTE)))
    logged = lab.log(API_ROUTE)[-1]
    say(f"  GET http://blue.example.com{path} from {EDGE.title}: {answer.status} by {answer.cloud}, "
        f"tenant {answer.tenant}, in {1000 * (answer.ended - answer.began):.1f} ms")  # fmt: skip
    say(f"    1 edge      visitor > Internet > AWS > router-gateway [{PUBLIC_ADDRESS}]")
    say(f"    2 AWS       VPCRoute {API_ROUTE} > VPCService blue/my-api > endpoint {logged.endpoint}")
    say("                (that of a slice of cluster gcp, which discovery has written)")
    say(f"    3 AWS       VPC blue/net, {pod.tenant.vpc:012x}: out by {GATEWAYS[0].interface} (SO_BINDTODEVICE)")
    say(f"    4 AWS node  {encap_route(pod, AWS, address)}")
    for one in out[:1]:
        say(f"    5 Internet  {one.node} > {one.segment} | segment routing | {one.source} > {one.destination}")
        say(f"                seen on the cable; the segment: node {pod.node.number} = GCP, VPC {pod.tenant.vpc:012x}, "
            f"attachment {pod.attachment:04x}")  # fmt: skip
    say(f"    6 GCP       its segments took {decapsulated} packets out (probes among them) > backend {pod.host}")
    wrong: list[str] = []
    if (answer.status, answer.cloud, answer.tenant) != (200, "gcp", "blue"):
        wrong.append(f"the example was answered with {answer}, expected 200 by gcp, blue")
    if not out or not decapsulated:
        wrong.append(f"the request was not seen in SRv6 to GCP ({len(out)} packets, {decapsulated} decapsulated)")
    wrong += _bare(wire)
    return wrong


def tenants(_lab: Lab, say: Say) -> list[str]:
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
            f"answered by its own backends ({shown(clouds)}; {shown(families)}; {moved} packets by its segments)"
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


def _backends(tenant: Tenant) -> tuple[Pod, ...]:
    return backend(GCP, tenant), backend(PREM, tenant)


def _count(tenant: Tenant, answers: Sequence[Answer]) -> int:
    return sum(answer.status == 200 and answer.tenant == tenant.name for answer in answers)


def _own(tenant: Tenant, answers: Sequence[Answer], how: str) -> list[str]:
    strays = [answer for answer in answers if answer.status != 200 or answer.tenant != tenant.name]
    return [f"{tenant.name} {how}: {len(strays)} of {len(answers)} not by its own, first {strays[0]}"] if strays else []


def _bare(wire: Wire) -> list[str]:
    return [f"{wire.bare} packets of tenants went over the Internet without SRv6"] if wire.bare else []


def shown(counts: Counter[str]) -> str:
    """Return counts as text."""
    return ", ".join(f"{name or 'none'} {count}" for name, count in sorted(counts.items()))
