"""The book: merging by consent, staleness, restarts, and that nothing is written that is there already."""

from __future__ import annotations

from datum_router.discovery.book import Book
from datum_router.discovery.export import Export, Import
from datum_router.discovery.marks import MAX_GROUPS, MAX_VPC_CHARS
from datum_router.discovery.plan import Put
from datum_router.discovery.slices import Slice
from datum_router.discovery.standing import Patience, Phase, time_text
from datum_router.discovery.vpcs import OWN
from datum_router.model.endpoint import make_endpoint

API = ("shop", "api")
WANTED = Import(uid="uid-1", protocol="HTTP", port=80)
T0 = 1_700_000_000.0
PATIENCE = Patience(stale_s=600.0, removed_s=60.0)


def export(*addresses: str, protocol: str = "HTTP", port: int = 80, vpc: str = "") -> Export:
    endpoints = tuple(make_endpoint(address, 8080, vpc=vpc) for address in addresses)
    return Export(protocol=protocol, port=port, endpoints=endpoints)


class World:
    """A book and the API that it writes to."""

    def __init__(self, slices: list[Slice] | None = None) -> None:
        self.book = Book(PATIENCE)
        self.version = 100
        self.there = {one.name: one for one in slices or ()}
        for one in self.there.values():
            self.book.observe(one, "1")

    def write(self) -> int:
        """Write all that has to be; return how much that was."""
        count = 0
        while not self.book.is_settled:
            for _, changes in self.book.take():
                for change in changes:
                    count += 1
                    self.version += 1
                    if isinstance(change, Put):
                        self.there[change.slice.name] = change.slice
                        self.book.written(change.slice, str(self.version))
                    else:
                        del self.there[change.name]
                        self.book.removed(change.namespace, change.name)
        return count

    def ready(self, cluster: str, *addresses: str, **more: str) -> None:
        self.book.put_exports(cluster, {API: export(*addresses, **more)}, is_whole=True)  # type: ignore[arg-type]
        self.book.put_phase(cluster, Phase.READY, now=T0)

    @property
    def addresses(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for one in self.there.values():
            if one.members:
                found.setdefault(one.cluster, set()).update(address for address, _ in one.members)
        return found

    @property
    def conflicts(self) -> dict[str, str]:
        return {one.cluster: one.conflict for one in self.there.values() if one.conflict}

    @property
    def stale(self) -> set[str]:
        return {one.stale_since for one in self.there.values()}


def test_exports_are_merged_for_a_service_that_asks_and_for_no_other() -> None:
    world = World()
    world.ready("b", "10.0.0.1")
    world.ready("c", "10.0.0.2")
    assert world.write() == 0
    world.book.put_import(API, WANTED)
    assert world.write() == 2
    assert world.addresses == {"b": {"10.0.0.1"}, "c": {"10.0.0.2"}}
    assert {one.owner_uid for one in world.there.values()} == {"uid-1"}
    world.book.put_import(API, None)
    world.write()
    assert world.there == {}


def test_a_cluster_that_does_not_export_any_more_is_left_out() -> None:
    world = World()
    world.book.put_import(API, WANTED)
    world.ready("b", "10.0.0.1")
    world.ready("c", "10.0.0.2")
    world.write()
    world.book.put_exports("c", {API: None})
    world.write()
    assert world.addresses == {"b": {"10.0.0.1"}}


def test_an_export_of_another_protocol_is_a_conflict_and_hurts_no_other() -> None:
    world = World()
    world.book.put_import(API, WANTED)
    world.ready("b", "10.0.0.1", protocol="GRPC")
    world.ready("c", "10.0.0.1")
    world.write()
    assert world.addresses == {"c": {"10.0.0.1"}}
    assert world.conflicts == {"b": "spec.protocol is GRPC there and HTTP here"}
    world.ready("b", "10.0.0.9")
    world.write()
    assert world.addresses == {"b": {"10.0.0.9"}, "c": {"10.0.0.1"}}
    assert world.conflicts == {}


def test_an_address_of_two_clusters_belongs_to_the_first_by_name_and_passes_on() -> None:
    world = World()
    world.book.put_import(API, WANTED)
    world.ready("c", "10.0.0.1", "10.0.0.2")
    world.write()
    world.ready("b", "10.0.0.1")
    world.write()
    assert world.addresses == {"b": {"10.0.0.1"}, "c": {"10.0.0.2"}}
    assert world.conflicts == {"c": "10.0.0.1:8080: cluster b exports it, too"}
    world.book.put_exports("b", {API: None})
    world.write()
    assert world.addresses == {"c": {"10.0.0.1", "10.0.0.2"}}
    assert world.conflicts == {}


def test_equal_addresses_of_two_vpcs_are_no_conflict() -> None:
    world = World()
    world.book.put_import(API, WANTED)
    world.ready("b", "10.0.0.1", vpc="shop/one")
    world.ready("c", "10.0.0.1", vpc="shop/two")
    world.write()
    assert world.addresses == {"b": {"10.0.0.1"}, "c": {"10.0.0.1"}}
    assert world.conflicts == {}


def test_an_address_that_no_slice_may_hold_costs_itself_only() -> None:
    world = World()
    world.book.put_import(API, WANTED)
    world.ready("b", "127.0.0.1", "10.0.0.2")
    world.write()
    assert world.addresses == {"b": {"10.0.0.2"}}
    assert world.conflicts == {"b": "127.0.0.1: an EndpointSlice cannot hold what is a loopback address"}


def test_a_vpc_whose_name_is_too_long_for_an_annotation_costs_its_endpoints_alone() -> None:
    world = World()
    world.book.put_import(API, WANTED)
    good, bad = export("10.0.0.1", vpc="v" * MAX_VPC_CHARS), export("10.0.0.2", vpc="v" * (MAX_VPC_CHARS + 1))
    both = Export(protocol="HTTP", port=80, endpoints=(*good.endpoints, *bad.endpoints))
    world.book.put_exports("b", {API: both}, is_whole=True)
    world.book.put_phase("b", Phase.READY, now=T0)
    world.write()
    assert world.addresses == {"b": {"10.0.0.1"}}
    assert world.conflicts == {"b": "10.0.0.2: the name of its VPC is longer than 317"}


def test_an_unreachable_cluster_keeps_its_endpoints_marked_until_they_expire() -> None:
    world = World()
    world.book.put_import(API, WANTED)
    world.ready("b", "10.0.0.1")
    world.write()
    world.book.put_phase("b", Phase.UNREACHABLE, "no answer", now=T0 + 10)
    assert world.write() == 1
    assert world.stale == {time_text(T0 + 10)}
    world.book.put_phase("b", Phase.UNREACHABLE, "still no answer", now=T0 + 20)
    assert world.write() == 0
    assert world.book.next_expiry() == T0 + 610
    world.book.expire(now=T0 + 609)
    assert world.write() == 0
    world.book.expire(now=T0 + 610)
    world.write()
    assert world.there == {}
    world.book.put_phase("b", Phase.READY, now=T0 + 700)
    world.write()
    assert world.addresses == {"b": {"10.0.0.1"}}
    assert world.stale == {""}


def test_a_cluster_that_comes_back_in_time_only_loses_its_mark() -> None:
    world = World()
    world.book.put_import(API, WANTED)
    world.ready("b", "10.0.0.1")
    world.write()
    before = dict(world.there)
    world.book.put_phase("b", Phase.UNREACHABLE, now=T0 + 10)
    world.write()
    world.ready("b", "10.0.0.1")
    world.write()
    assert world.there == before
    world.ready("b", "10.0.0.1")
    assert world.write() == 0


def test_a_removed_cluster_leaves_after_its_time_and_is_forgotten() -> None:
    world = World()
    world.book.put_import(API, WANTED)
    world.ready("b", "10.0.0.1")
    world.ready("c", "10.0.0.2")
    world.write()
    world.book.put_phase("b", Phase.REMOVED, now=T0 + 5)
    world.write()
    assert world.addresses == {"b": {"10.0.0.1"}, "c": {"10.0.0.2"}}
    world.book.expire(now=T0 + 65)
    world.write()
    assert world.addresses == {"c": {"10.0.0.2"}}
    world.book.expire(now=T0 + 66)
    assert list(world.book.clusters) == ["c"]


def test_a_restart_takes_nothing_away_from_a_cluster_that_was_not_heard_yet() -> None:
    first = World()
    first.book.put_import(API, WANTED)
    first.ready("b", "10.0.0.1")
    first.write()
    world = World(list(first.there.values()))
    world.book.put_import(API, WANTED)
    world.book.put_phase("b", Phase.CONNECTING, now=T0)
    assert world.write() == 0
    world.ready("b", "10.0.0.1")
    assert world.write() == 0, "what is there already is written again"


def test_a_restart_counts_staleness_from_the_mark() -> None:
    first = World()
    first.book.put_import(API, WANTED)
    first.ready("b", "10.0.0.1")
    first.book.put_phase("b", Phase.UNREACHABLE, now=T0)
    first.write()
    world = World(list(first.there.values()))
    world.book.put_import(API, WANTED)
    world.book.put_phase("b", Phase.CONNECTING, now=T0 + 300)
    world.book.put_phase("b", Phase.UNREACHABLE, "no answer", now=T0 + 310)
    assert world.write() == 0
    assert world.book.next_expiry() == T0 + 600
    world.book.expire(now=T0 + 600)
    world.write()
    assert world.there == {}


def test_slices_of_a_cluster_without_a_secret_are_kept_for_the_time_of_a_removed_one() -> None:
    first = World()
    first.book.put_import(API, WANTED)
    first.ready("b", "10.0.0.1")
    first.write()
    world = World(list(first.there.values()))
    world.book.put_import(API, WANTED)
    assert world.book.published_clusters() == {"b"}
    assert world.write() == 0
    world.book.put_phase("b", Phase.REMOVED, now=T0)
    world.write()
    assert world.stale == {time_text(T0)}
    world.book.expire(now=T0 + 60)
    world.write()
    assert world.there == {}


def test_a_cluster_that_cannot_be_reached_after_it_was_removed_keeps_its_time() -> None:
    world = World()
    world.book.put_import(API, WANTED)
    world.ready("b", "10.0.0.1")
    world.book.put_phase("b", Phase.REMOVED, now=T0 + 5)
    world.book.put_phase("b", Phase.UNREACHABLE, "not read yet", now=T0 + 30)
    assert world.book.clusters["b"].since_at == T0 + 5
    world.book.put_phase("b", Phase.REMOVED, now=T0 + 40)
    assert world.book.clusters["b"].since_at == T0 + 40


def test_what_somebody_else_did_to_a_slice_is_undone() -> None:
    world = World()
    world.book.put_import(API, WANTED)
    world.ready("b", "10.0.0.1")
    world.write()
    (one,) = world.there.values()
    world.book.removed(one.namespace, one.name)
    world.there.clear()
    assert world.write() == 1
    assert world.addresses == {"b": {"10.0.0.1"}}


def test_an_older_version_that_is_heard_of_late_changes_nothing() -> None:
    world = World()
    world.book.put_import(API, WANTED)
    world.ready("b", "10.0.0.1")
    world.write()
    (old,) = world.there.values()
    version = world.version
    world.ready("b", "10.0.0.1", "10.0.0.2")
    world.write()
    world.book.observe(old, str(version))
    assert world.book.is_settled


def test_a_service_that_was_made_anew_owns_its_slices() -> None:
    world = World()
    world.book.put_import(API, WANTED)
    world.ready("b", "10.0.0.1")
    world.write()
    world.book.put_import(API, Import(uid="uid-2", protocol="HTTP", port=80))
    assert world.write() == 1
    assert {one.owner_uid for one in world.there.values()} == {"uid-2"}


def test_work_is_for_what_changed_only() -> None:
    world = World()
    for number in range(50):
        world.book.put_import(("shop", f"s{number}"), WANTED)
    exports = {("shop", f"s{number}"): export(f"10.0.0.{number}") for number in range(50)}
    world.book.put_exports("b", dict(exports), is_whole=True)
    world.book.put_phase("b", Phase.READY, now=T0)
    world.write()
    before = world.book.counts.planned
    world.book.put_exports("b", {("shop", "s7"): export("10.0.1.7")})
    assert world.write() == 1
    assert world.book.counts.planned - before == 1


# --- VPCs ------------------------------------------------------------------------------------------------------------


def vpcs_of(world: World) -> set[str]:
    return {one.group.vpc for one in world.there.values() if one.members}


def test_one_vpc_under_two_names_has_each_address_once() -> None:
    world = World()
    world.book.put_vpcs(OWN, {"shop/mine": "jU"})
    world.book.put_vpcs("b", {"shop/one": "jU"})
    world.book.put_vpcs("c", {"other/two": "jU"})
    world.book.put_import(API, WANTED)
    world.ready("b", "10.0.0.1", vpc="shop/one")
    world.ready("c", "10.0.0.1", "10.0.0.2", vpc="other/two")
    world.write()
    assert world.addresses == {"b": {"10.0.0.1"}, "c": {"10.0.0.2"}}
    assert vpcs_of(world) == {"shop/mine"}
    assert world.conflicts == {"c": "10.0.0.1:8080@shop/mine: cluster b exports it, too"}


def test_another_vpc_of_the_same_name_is_a_conflict_until_it_is_not() -> None:
    world = World()
    world.book.put_vpcs(OWN, {"shop/one": "jU"})
    world.book.put_vpcs("b", {"shop/one": "kX"})
    world.book.put_import(API, WANTED)
    world.ready("b", "10.0.0.1", vpc="shop/one")
    world.ready("c", "10.0.0.1", vpc="shop/two")
    world.write()
    assert world.addresses == {"c": {"10.0.0.1"}}
    why = "vpc shop/one has identifier kX there and jU here: another network of the same name"
    assert world.conflicts == {"b": f"10.0.0.1: {why}"}
    assert world.book.conflicts_of("b") == {API: f"10.0.0.1: {why}"}
    world.book.put_vpcs(OWN, {"shop/one": "kX"})
    world.write()
    assert world.addresses == {"b": {"10.0.0.1"}, "c": {"10.0.0.1"}}
    assert world.book.conflicts_of("b") == world.conflicts == {}


def test_an_identifier_that_comes_later_lets_endpoints_in() -> None:
    world = World()
    world.book.put_vpcs(OWN, {"shop/one": "jU"})
    world.book.put_import(API, WANTED)
    world.ready("b", "10.0.0.1", vpc="shop/one")
    world.write()
    assert world.addresses == {}
    world.book.put_vpcs("b", {"shop/one": "jU"})
    world.write()
    assert world.addresses == {"b": {"10.0.0.1"}}
    world.book.put_vpcs("b", {"shop/one": "jU"})
    assert world.write() == 0


def test_a_vpc_that_is_not_here_never_takes_a_name_of_here() -> None:
    world = World()
    world.book.put_vpcs("b", {"shop/one": "jU"})
    world.book.put_import(API, WANTED)
    world.ready("b", "10.0.0.1", vpc="shop/one")
    world.write()
    assert vpcs_of(world) == {"/jU"}


def test_an_address_of_a_cluster_that_cannot_be_heard_goes_to_one_that_can() -> None:
    world = World()
    world.book.put_import(API, WANTED)
    world.ready("b", "10.0.0.1")
    world.ready("c", "10.0.0.1")
    world.write()
    assert world.addresses == {"b": {"10.0.0.1"}}
    world.book.put_phase("b", Phase.REMOVED, now=T0 + 5)
    world.write()
    assert world.addresses == {"c": {"10.0.0.1"}}
    assert world.conflicts == {"b": "10.0.0.1:8080: cluster c exports it, too"}


def test_endpoints_that_all_differ_have_a_bounded_number_of_slices() -> None:
    world = World()
    world.book.put_import(API, WANTED)
    count = MAX_GROUPS + 7
    endpoints = tuple(make_endpoint(f"10.0.0.{number}", 8080, weight=number + 1) for number in range(count))
    world.book.put_exports("b", {API: Export(protocol="HTTP", port=80, endpoints=endpoints)}, is_whole=True)
    world.book.put_phase("b", Phase.READY, now=T0)
    world.write()
    assert len(world.there) == MAX_GROUPS + 1
    assert world.conflicts["b"].startswith("10.0.0.100:8080, 10.0.0.101:8080")
    assert "and 2 more: it differs from the other endpoints in port, VPC, place or weight" in world.conflicts["b"]
    assert world.book.slices_of("b") == MAX_GROUPS + 1


def test_a_service_whose_name_is_at_the_limit_has_slices() -> None:
    world = World()
    for last in "ab":
        name = ("shop", "n" * 252 + last)
        world.book.put_import(name, WANTED)
        world.book.put_exports("c" * 63, {name: export("10.0.0.1")})
    world.book.put_phase("c" * 63, Phase.READY, now=T0)
    world.write()
    assert len(world.there) == 2
    assert max(map(len, world.there)) <= 253


def test_both_families_have_slices_of_their_own() -> None:
    world = World()
    world.book.put_import(API, WANTED)
    world.ready("b", "10.0.0.1", "fd00::1")
    world.write()
    assert {(one.group.family, one.members) for one in world.there.values()} == {
        ("IPv4", (("10.0.0.1", True),)),
        ("IPv6", (("fd00::1", True),)),
    }
