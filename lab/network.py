"""Network namespaces and what is in them: made by iproute2, entered by threads, deleted at the end.

Every namespace is called `srp-PROCESS-NAME`, so that nothing of anybody else is touched: only what this process has
made is deleted, and at the start what a process has left that is no more, with whatever still runs in there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.plan import (
    AWS,
    EDGE,
    GATEWAY_HOST,
    GATEWAYS,
    INTERNET,
    NODES,
    PODS,
    PUBLIC_ADDRESS,
    PUBLIC_NETWORK,
    TENANTS,
    VISITOR,
    VISITOR_ADDRESS,
    VISITOR_NETWORK,
    Node,
    Pod,
)

PREFIX = "srp-"
HOME_PREFIX = "datum-router-lab-"
POD_MTU = 1400
"""SRv6 adds 64 bytes: an IPv6 header and one segment."""
_CLONE_NEWNET = 0x40000000
_RUN = Path("/run/netns")


class LabError(Exception):
    """The lab cannot go on; the message says what was tried and what came of it."""


def namespace(name: str) -> str:
    """Return the full name of a namespace of this process."""
    return f"{PREFIX}{os.getpid()}-{name}"


def ip(*arguments: str, inside: str = "") -> str:
    """Run `ip` (in a namespace of ours) and return what it printed.

    Raises:
        LabError: It failed; holds the command and its error.
    """
    command = ["ip", *(("-n", namespace(inside)) if inside else ()), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def inside_command(name: str, command: Sequence[str]) -> list[str]:
    """Return what runs a command in a namespace of ours; `ip` becomes the command, so its process id is that one's."""
    return ["ip", "netns", "exec", namespace(name), *command]


def enter(name: str) -> None:
    """Move the calling thread, for good, into a namespace of ours: sockets that it makes are there.

    Raises:
        OSError: The kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with (_RUN / namespace(name)).open() as handle:
        if libc.setns(handle.fileno(), _CLONE_NEWNET):
            code = ctypes.get_errno()
            raise OSError(code, f"setns {name}: {os.strerror(code)}")


def sysctl(name: str, **values: int) -> None:
    """Set values below `net.` in a namespace; `__` stands for a dot."""
    script = "; ".join(f"echo {value} > /proc/sys/net/{key.replace('__', '/')}" for key, value in values.items())
    subprocess.run(inside_command(name, ["sh", "-ec", script]), check=True, timeout=30)


@contextlib.contextmanager
def built() -> Iterator[None]:
    """Make everything of the plan; delete it at the end, whatever happens."""
    delete_leftovers()
    names = [INTERNET, VISITOR, *(node.name for node in NODES), *dict.fromkeys(pod.host for pod in PODS)]
    made: list[str] = []
    try:
        for name in names:
            ip("netns", "add", namespace(name))
            made.append(name)
            ip("link", "set", "lo", "up", inside=name)
            sysctl(
                name,
                ipv6__conf__all__accept_dad=0,
                ipv6__conf__default__accept_dad=0,
                ipv4__conf__all__rp_filter=0,
                ipv4__conf__default__rp_filter=0,
            )
        for name in (INTERNET, *(node.name for node in NODES)):
            sysctl(
                name,
                ipv6__conf__all__forwarding=1,
                ipv4__ip_forward=1,
                ipv6__conf__all__seg6_enabled=1,
                ipv6__conf__default__seg6_enabled=1,
            )
        for node in NODES:
            _connect_node(node)
        for pod in PODS:
            _connect_pod(pod)
        for node in NODES:
            _encapsulate(node)
        _connect_public()
        yield
    finally:
        for name in made:
            with contextlib.suppress(LabError):
                ip("netns", "del", namespace(name))


def delete_leftovers() -> None:
    """Delete what labs have left whose process was killed: their namespaces, what runs in these, their files."""
    for found in sorted(_RUN.glob(f"{PREFIX}*")):
        if _is_left(found.name.removeprefix(PREFIX)):
            with contextlib.suppress(LabError):
                for process in ip("netns", "pids", found.name).split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(process), signal.SIGKILL)
                ip("netns", "del", found.name)
    for found in sorted(Path(tempfile.gettempdir()).glob(f"{HOME_PREFIX}*")):
        if _is_left(found.name.removeprefix(HOME_PREFIX)):
            shutil.rmtree(found, ignore_errors=True)


def _is_left(name: str) -> bool:
    """Tell whether a name of ours, without what it begins with, is of a process that has ended."""
    owner = name.partition("-")[0]
    return owner.isdecimal() and not Path(f"/proc/{owner}").exists()


@contextlib.contextmanager
def home() -> Iterator[Path]:
    """Give a directory for logs, data and kubeconfigs; delete it at the end."""
    with tempfile.TemporaryDirectory(prefix=f"{HOME_PREFIX}{os.getpid()}-", ignore_cleanup_errors=True) as made:
        yield Path(made)


def _cable(one: str, interface: str, other: str, other_interface: str) -> None:
    ip(
        "link", "add", interface, "type", "veth", "peer", "name", other_interface, "netns", namespace(other), inside=one
    )  # fmt: skip
    ip("link", "set", interface, "up", inside=one)
    ip("link", "set", other_interface, "up", inside=other)


def _connect_node(node: Node) -> None:
    _cable(node.name, "u0", INTERNET, node.name)
    ip("-6", "addr", "add", f"{node.address}/64", "dev", "u0", "nodad", inside=node.name)
    ip("-6", "addr", "add", f"{node.router}/64", "dev", node.name, "nodad", inside=INTERNET)
    ip("-6", "route", "add", "default", "via", node.router, inside=node.name)
    ip("-6", "route", "add", node.locator, "via", node.address, inside=INTERNET)
    ip("sr", "tunsrc", "set", node.address, inside=node.name)


def _connect_pod(pod: Pod) -> None:
    node, table = pod.node.name, pod.tenant.table
    _cable(node, pod.veth, pod.host, pod.interface)
    ip("link", "set", pod.interface, "mtu", str(POD_MTU), inside=pod.host)
    # In the pod: one address of each family, and the next hop of End.DX4. Its own table, since it may have several.
    own = str(200 + pod.tenant.number)
    for address in (f"{pod.ipv4}/32", f"{pod.link_local}/32"):
        ip("addr", "add", address, "dev", pod.interface, "noprefixroute", inside=pod.host)
    ip("-6", "addr", "add", f"{pod.ipv6}/128", "dev", pod.interface, "nodad", "noprefixroute", inside=pod.host)
    for family, address, router in (("-4", pod.ipv4, "169.254.0.1"), ("-6", pod.ipv6, "fe80::1")):
        ip(
            family, "route", "add", "default", "via", router, "dev", pod.interface, "onlink", "src", address,
            "table", own, inside=pod.host,
        )  # fmt: skip
        ip(family, "rule", "add", "oif", pod.interface, "table", own, "pref", own, inside=pod.host)
        ip(family, "rule", "add", "from", address, "table", own, "pref", own, inside=pod.host)
        if pod.host != GATEWAY_HOST:  # which has no default way: into a VPC only by its interface
            ip(
                family, "route", "add", "default", "via", router, "dev", pod.interface, "onlink", "src", address,
                inside=pod.host,
            )  # fmt: skip
    # On the node: the tenant's table, and the segments that end here. `count` shows packets (ip -s -6 route).
    ip("addr", "add", "169.254.0.1/32", "dev", pod.veth, inside=node)
    ip("-6", "addr", "add", "fe80::1/64", "dev", pod.veth, "nodad", inside=node)
    for family, address in (("-4", f"{pod.ipv4}/32"), ("-6", f"{pod.ipv6}/128")):
        ip(family, "rule", "add", "iif", pod.veth, "table", table, "pref", "100", inside=node)
        ip(family, "route", "add", address, "dev", pod.veth, "table", table, inside=node)
    ip("route", "add", f"{pod.link_local}/32", "dev", pod.veth, inside=node)
    ip(
        "-6", "route", "add", f"{pod.segment6}/128", "encap", "seg6local", "action", "End.DT6", "table", table,
        "count", "dev", pod.veth, inside=node,
    )  # fmt: skip
    ip(
        "-6", "route", "add", f"{pod.segment4}/128", "encap", "seg6local", "action", "End.DX4", "nh4",
        pod.link_local, "count", "dev", pod.veth, inside=node,
    )  # fmt: skip


def _encapsulate(node: Node) -> None:
    """Give each tenant's table of a node the way to its pods on all others."""
    for tenant in TENANTS:
        for pod in PODS:
            if pod.node is node or pod.tenant is not tenant:
                continue
            for family, address, segment in (
                ("-4", f"{pod.ipv4}/32", pod.segment4),
                ("-6", f"{pod.ipv6}/128", pod.segment6),
            ):
                ip(
                    family, "route", "add", address, "table", tenant.table, "encap", "seg6", "mode", "encap",
                    "segs", segment, "dev", "u0", inside=node.name,
                )  # fmt: skip


def _connect_public() -> None:
    """Connect the gateway's public side, and somebody who visits it."""
    for node, host, network, address in (
        (AWS, GATEWAYS[0].host, PUBLIC_NETWORK, PUBLIC_ADDRESS),
        (EDGE, VISITOR, VISITOR_NETWORK, VISITOR_ADDRESS),
    ):
        _cable(node.name, "public0", host, "public0")
        ip("-6", "addr", "add", f"{network}::1/64", "dev", "public0", "nodad", inside=node.name)
        ip("-6", "addr", "add", f"{address}/64", "dev", "public0", "nodad", inside=host)
        ip("-6", "route", "add", "default", "via", f"{network}::1", inside=host)
        ip("-6", "route", "add", f"{network}::/64", "via", node.address, inside=INTERNET)


def cut_off(node: Node) -> None:
    """Let every packet to and from a node vanish on the Internet: no error, no reset, as when a cable is cut."""
    for direction in directions(node):
        ip("-6", "rule", "add", *direction, "blackhole", "pref", "10", inside=INTERNET)


def reconnect(node: Node) -> None:
    """Undo `cut_off`."""
    for direction in directions(node):
        ip("-6", "rule", "del", *direction, "blackhole", "pref", "10", inside=INTERNET)


def directions(node: Node) -> tuple[tuple[str, str], ...]:
    """Return what selects, by rules of the Internet's, every packet to and from a node."""
    return (("iif", node.name), ("to", node.locator), ("to", f"{node.underlay}::/48"))


def segment_packets(pod: Pod) -> int:
    """Return how many packets the segments of a pod's attachment have taken out of SRv6, by the kernel's count."""
    total = 0
    for line in ip("-s", "-6", "route", "show", inside=pod.node.name).splitlines():
        words = line.split()
        if words and words[0] in (pod.segment4, pod.segment6):
            total += int(words[words.index("packets") + 1])
    return total


def encap_route(pod: Pod, node: Node, address: str) -> str:
    """Return the kernel's route from a node to an address of a pod of another one."""
    family = "-6" if ":" in address else "-4"
    return " ".join(ip(family, "route", "show", address, "table", pod.tenant.table, inside=node.name).split())


def missing() -> str:
    """Return what this machine lacks for the lab, empty if nothing; every feature is tried in a namespace of ours."""
    if not shutil.which("ip"):
        return "the program `ip`: install iproute2 (apt-get install iproute2)"
    if os.geteuid():
        return "root, for network namespaces (CAP_SYS_ADMIN and CAP_NET_ADMIN): run it as root"
    names = ("try-a", "try-b")
    try:
        for name in names:
            ip("netns", "add", namespace(name))
        _cable("try-a", "u0", "try-b", "u0")
        for what, command in (
            ("IPv6 segment routing (CONFIG_IPV6_SEG6_LWTUNNEL): encapsulation",
             "-6 route add fd10::/64 table 10 encap seg6 mode encap segs fc00::1 dev u0"),
            ("IPv4 in IPv6 segment routing (CONFIG_IPV6_SEG6_LWTUNNEL)",
             "route add 10.0.0.0/24 table 10 encap seg6 mode encap segs fc00::1 dev u0"),
            ("segment End.DT6 with a packet counter (Linux 5.14, iproute2 5.14)",
             "-6 route add fc00::2 encap seg6local action End.DT6 table 10 count dev u0"),
            ("segment End.DX4 (Linux 4.14)",
             "-6 route add fc00::3 encap seg6local action End.DX4 nh4 169.254.1.1 count dev u0"),
            ("policy rules for IPv6 (CONFIG_IPV6_MULTIPLE_TABLES)", "-6 rule add iif u0 blackhole pref 10"),
            ("policy rules for IPv4 (CONFIG_IP_MULTIPLE_TABLES)", "rule add iif u0 table 10 pref 10"),
        ):  # fmt: skip
            try:
                ip(*command.split(), inside="try-a")
            except LabError as error:
                return f"{what}; {error}"
        try:
            socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM).close()
        except OSError as error:
            return f"packet sockets, to see SRv6 on the wire (CONFIG_PACKET, CAP_NET_RAW); {error}"
        if not Path("/proc/sys/net/ipv6/conf/all/seg6_enabled").exists():
            return "IPv6 segment routing: there is no net.ipv6.conf.all.seg6_enabled"
    except LabError as error:
        return f"network namespaces and veth; {error}"
    finally:
        for name in names:
            with contextlib.suppress(LabError):
                ip("netns", "del", namespace(name))
    return ""
