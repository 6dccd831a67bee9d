"""Discovery in virtual time, at a size that a test can afford; `benchmarks/bench_discovery.py` has the large one."""

from __future__ import annotations

from bench_discovery import GATEWAYS, simulate


def test_every_gateway_knows_what_clusters_export_and_work_follows_the_change() -> None:
    report = simulate(clusters=20, services=60, endpoints=3000, seconds=40)
    assert report.gateways_converged == GATEWAYS
    assert report.writes_at_rest == 0
    assert report.outages >= 4
    # A part, a service in a cluster, has about ten endpoints here.
    assert report.visited_per_change < 60
    assert report.slices_written_per_change < 3


def test_ten_times_as_many_services_do_not_make_a_change_dearer() -> None:
    small = simulate(clusters=10, services=20, endpoints=1000, seconds=20)
    large = simulate(clusters=100, services=200, endpoints=10_000, seconds=20)
    assert large.visited_per_change < 1.5 * small.visited_per_change
