"""Who is where: nodes, pods and addresses of the lab, as data; and the map that people are shown.

Theory of operation
===================
Four nodes (an edge and three clouds) hang on one IPv6 Internet, each with an address plan of its own. On the nodes live
pods of two tenants. Both tenants use the *same* addresses, so nothing but the VPC tells them apart:

- A node keeps one routing table for each tenant; what comes from a tenant's pod is looked up in it (a policy rule by
  incoming interface: this takes the place of a VRF, which not every kernel has).
- Routes to pods on other nodes encapsulate (SRv6, `encap seg6 mode encap`) towards the segment of the pod's attachment.
- The segment is `SRv6 network of the node | VPC identifier (48 bits) | attachment identifier (16 bits)`. The pod's node
  takes the outer header off (`End.DT6`, and `End.DX4` for IPv4, whose table look-up would need a VRF) and delivers.

The gateway's pod is in AWS and is attached to both tenants' VPCs, by an interface for each.

Each cloud is a cluster of its own, whose API is reached over the Internet like anything else: it is cut off with its
cloud. Gateway, controller and discovery daemon are those of AWS's cluster; what GCP's and on-prem's export comes to
AWS by discovery.
"""

from __future__ import annotations

from dataclasses import dataclass

GATEWAY_PORT = 8080
ADMIN_PORT = 9901
"""Of the gateway."""
DISCOVERY_PORT = 9902
CONTROLLER_PORT = 9903
API_PORT = 6443
BACKEND_PORT = 8080
SEGMENT_ROUTING_HEADER = 43
"""IPv6 next header: routing (RFC 8200 section 4.4); type 4 is segment routing (RFC 8754)."""


@dataclass(frozen=True)
class Node:
    """A cloud, or the edge.

    Attributes:
        number: Of its addresses.
        underlay: IPv6 network towards the Internet: `::1` there, `::2` here.
    """

    name: str
    title: str
    number: int
    underlay: str

    @property
    def address(self) -> str:
        """Its address on the Internet."""
        return f"{self.underlay}::2"

    @property
    def router(self) -> str:
        """Its way to the Internet."""
        return f"{self.underlay}::1"

    @property
    def api(self) -> str:
        """Address and port of its cluster's API server."""
        return f"[{self.address}]:{API_PORT}"

    @property
    def locator(self) -> str:
        """What the Internet routes to it for its segments."""
        return f"fc00:0:{self.number}::/48"


@dataclass(frozen=True)
class Tenant:
    """A customer with one VPC.

    Attributes:
        number: Of tables and link-local addresses.
        vpc: Identifier of its VPC, as in lab/manifests.
    """

    name: str
    number: int
    vpc: int

    @property
    def table(self) -> str:
        """Routing table of the tenant on every node."""
        return str(100 + self.number)


@dataclass(frozen=True)
class Pod:
    """A network namespace with an interface into a tenant's VPC.

    Attributes:
        host: Name of the namespace; the gateway's has interfaces of both tenants.
        interface: Inside the namespace.
        attachment: Identifier of the VPCAttachment, as in lab/manifests.
        last: Last part of its addresses.
    """

    host: str
    node: Node
    tenant: Tenant
    interface: str
    attachment: int
    last: int

    @property
    def ipv4(self) -> str:
        """Its address in the VPC."""
        return f"10.1.{self.node.number}.{self.last}"

    @property
    def ipv6(self) -> str:
        """Its IPv6 address in the VPC."""
        return f"fd10:1:{self.node.number}::{self.last}"

    @property
    def link_local(self) -> str:
        """Next hop of `End.DX4`, unique on the node: it is looked up in the main table."""
        return f"169.254.1.{self.tenant.number}"

    @property
    def veth(self) -> str:
        """The node's end of its cable."""
        return f"{self.tenant.name}0"

    @property
    def segment6(self) -> str:
        """Segment that IPv6 packets for it are sent to."""
        return f"fc00:0:{self.node.number}::{self.tenant.vpc:x}:{self.attachment:x}"

    @property
    def segment4(self) -> str:
        """Segment that IPv4 packets for it are sent to."""
        return f"fc00:0:{self.node.number}:4::{self.tenant.vpc:x}:{self.attachment:x}"


EDGE = Node("edge", "edge", 9, "2001:db8:9")
AWS = Node("aws", "AWS", 1, "2001:db8:a")
GCP = Node("gcp", "GCP", 2, "2001:db8:c")
PREM = Node("prem", "on-prem", 3, "2001:db8:d")
NODES = (EDGE, AWS, GCP, PREM)
CLOUDS = (AWS, GCP, PREM)
"""Those with a cluster of their own."""
REMOTES = (GCP, PREM)
"""Those that AWS's discovery joins."""

BLUE = Tenant("blue", 1, 0x4D2)
GREEN = Tenant("green", 2, 0x4D3)
TENANTS = (BLUE, GREEN)

GATEWAY_HOST = "gateway"
GATEWAYS = (
    Pod(GATEWAY_HOST, AWS, BLUE, "galactic0", 1, 2),
    Pod(GATEWAY_HOST, AWS, GREEN, "galactic1", 1, 3),
)
BACKENDS = tuple(
    Pod(f"{node.name}-{tenant.name}", node, tenant, "galactic0", node.number, 10)
    for tenant in TENANTS
    for node in REMOTES
)
CLIENTS = tuple(Pod(f"edge-{tenant.name}", EDGE, tenant, "galactic0", 9, 9) for tenant in TENANTS)
PODS = (*GATEWAYS, *BACKENDS, *CLIENTS)

PUBLIC_NETWORK = f"{AWS.underlay}:80"
PUBLIC_ADDRESS = f"{PUBLIC_NETWORK}::80"
"""Where the Internet finds the gateway."""

VISITOR_NETWORK = f"{EDGE.underlay}:77"
VISITOR_ADDRESS = f"{VISITOR_NETWORK}::77"
"""Somebody on the Internet, behind the edge."""

INTERNET = "net"
VISITOR = "visitor"


def backend(node: Node, tenant: Tenant) -> Pod:
    """Return a tenant's backend in a cloud."""
    return next(pod for pod in BACKENDS if pod.node is node and pod.tenant is tenant)


def draw_map() -> str:
    """Return the lab as people draw it."""

    def clients(node: Node) -> list[str]:
        return [f"{pod.tenant.name:<6} {pod.ipv4}  {pod.ipv6}" for pod in (*CLIENTS, *BACKENDS) if pod.node is node]

    edge = _box("edge", [f"visitor {VISITOR_ADDRESS}", *clients(EDGE), f"segments {EDGE.locator}", ""])
    aws = [f"{pod.interface} {pod.tenant.name:<6} {pod.ipv4}  {pod.ipv6}" for pod in GATEWAYS]
    aws = [f"router-gateway {PUBLIC_ADDRESS}", *aws, f"segments {AWS.locator}", f"cluster {AWS.api} discovery"]
    aws = _box("AWS", aws)
    gcp = _box("GCP", [*clients(GCP), f"segments {GCP.locator}", f"cluster {GCP.api}"])
    prem = _box("on-prem", [*clients(PREM), f"segments {PREM.locator}", f"cluster {PREM.api}"])
    one, other = backend(GCP, BLUE), backend(GCP, GREEN)
    lines = [
        *_beside(edge, aws),
        *_cables(EDGE, AWS),
        " IPv6 Internet: SRv6 carries tenants' packets ".center(2 * _WIDTH + 4, "="),
        *_cables(GCP, PREM),
        *_beside(gcp, prem),
        "",
        "Both tenants have the same addresses. A segment says whose it is: node | VPC | attachment.",
        f"{one.ipv6} in GCP is at {one.segment6} if it is blue's, at {other.segment6} if it is green's.",
    ]
    return "\n".join(lines) + "\n"


_WIDTH = 42


def _box(title: str, rows: list[str]) -> list[str]:
    inner = _WIDTH - 4
    return [
        "+" + f" {title} ".center(_WIDTH - 2, "-") + "+",
        *[f"| {row:<{inner}} |" for row in rows],
        "+" + "-" * (_WIDTH - 2) + "+",
    ]


def _beside(left: list[str], right: list[str]) -> list[str]:
    return [f"{one}    {other}" for one, other in zip(left, right, strict=True)]


def _cables(left: Node, right: Node) -> list[str]:
    ends = (f"{'|':>6} {node.address}".ljust(_WIDTH + 4) for node in (left, right))
    return ["".join(ends).rstrip()]
