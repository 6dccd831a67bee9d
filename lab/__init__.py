"""The lab: an edge, three clouds and two tenants with equal addresses in network namespaces, joined by real SRv6."""
