"""Kubernetes: its kinds, bindings to its Services, and a cluster's API as a source of manifests."""

from typing import Final

NAME: Final = "kubernetes"
"""Name of the source and of the cluster."""
