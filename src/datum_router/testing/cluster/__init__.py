"""The kit for what is written to a cluster: one in memory, and the conformance suite for real ones."""

from datum_router.testing.cluster.conformance import ClusterConformance, SeenEvent, Stage
from datum_router.testing.cluster.fake import FakeCluster, FakeStage, FakeWrite, run_now

__all__ = ["ClusterConformance", "FakeCluster", "FakeStage", "FakeWrite", "SeenEvent", "Stage", "run_now"]
