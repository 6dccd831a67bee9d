"""What `make lab LAB=--keep` leaves for people to try: shell functions, in a file to be read by `.`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from lab.network import directions, inside_command, namespace
from lab.plan import CLOUDS, GATEWAY_PORT, GCP, INTERNET, PUBLIC_ADDRESS, TENANTS, VISITOR

HELP = f"""
  ask blue /shop                 a request from the visitor at the edge, to blue.example.com (or green)
  aws get vpcservices -A         kubectl in AWS's cluster; gcp and prem are the others
  aws -n blue get endpointslices --show-labels
  gcp -n blue patch vpcservice shop --type merge -p '{{"spec": {{"exportTo": null}}}}'
  cut; mend                      cut GCP off, and connect it again
  inside aws ip -6 rule          any command in a namespace: {", ".join(node.name for node in CLOUDS)}, gateway, ...
"""


def functions(kubectl: Mapping[str, Sequence[str]]) -> str:
    """Return the file's text.

    Args:
        kubectl: By cloud, what runs kubectl in its namespace.
    """
    hosts = " ".join(tenant.name for tenant in TENANTS)
    curl = shlex.join(inside_command(VISITOR, ["curl", "-sSg", "-i"]))
    lines = [
        f"# ask TENANT PATH, where TENANT is one of: {hosts}",
        f'ask() {{ {curl} -H "Host: $1.example.com" "http://[{PUBLIC_ADDRESS}]:{GATEWAY_PORT}$2"; echo; }}',
        f'inside() {{ where=$1; shift; ip netns exec "{namespace("")}$where" "$@"; }}',
        *(f'{name}() {{ {shlex.join(inside_command(name, command))} "$@"; }}' for name, command in kubectl.items()),
    ]
    for name, action in (("cut", "add"), ("mend", "del")):
        rules = [
            shlex.join(["ip", "-n", namespace(INTERNET), "-6", "rule", action, *way, "blackhole", "pref", "10"])
            for way in directions(GCP)
        ]
        lines.append(f"{name}() {{ {' && '.join(rules)}; }}")
    return "\n".join(lines) + "\n"
