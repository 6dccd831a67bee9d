"""The conformance suite for clusters: subclass it, say how a cluster is opened, run pytest.

    from datum_router.testing.cluster import ClusterConformance

    class TestKubernetesCluster(ClusterConformance):
        def run(self, body):
            async def main():
                await body(open_cluster(), stage)
            trio.run(main)

It holds for every cluster that has our kinds: what is written is there, what somebody else did in between is not lost,
what is wrong is named.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import msgspec
import pytest

from datum_router.errors import ClusterConflict, ClusterNotFound, ClusterRejected
from datum_router.manifests.meta import API_VERSION, GROUP, VERSION, GroupVersionKind, ObjectKey, OwnerReference
from datum_router.plugins.cluster import Cluster, LeaseRecord, ObjectEvent, StatusWrite

SERVICE = GroupVersionKind(group=GROUP, version=VERSION, kind="VPCService")
SERVICES = "vpcservices"
NOTHING = GroupVersionKind(group="nowhere.example", version="v1", kind="Nothing")
"""A kind that the cluster under test must not have."""


class SeenEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event as it is found in the cluster: about which object, and how often it was counted."""

    name: str
    type: str
    reason: str
    note: str
    count: int


class Stage(Protocol):
    """The world around the cluster under test; calls may block."""

    def new_namespace(self) -> str:
        """Return the name of a new, empty namespace."""
        ...

    def remove(self, gvk: GroupVersionKind, plural: str, key: ObjectKey) -> None:
        """Delete an object."""
        ...

    def events(self, namespace: str) -> Sequence[SeenEvent]:
        """Return the events about objects of a namespace."""
        ...


Body = Callable[[Cluster, Stage], Awaitable[None]]


def service(namespace: str, name: str = "shop", *, port: int = 8080) -> dict[str, object]:
    """Return a VPCService that every cluster with our kinds takes."""
    return {
        "apiVersion": API_VERSION,
        "kind": "VPCService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"vpcAttachmentRef": {"name": "attachment"}, "protocol": "HTTP", "port": port},
    }


def key(namespace: str, name: str = "shop") -> ObjectKey:
    """Return the key of such a service."""
    return ObjectKey(kind="VPCService", namespace=namespace, name=name)


def status(namespace: str, uid: str, value: Mapping[str, object], *, version: str = "") -> StatusWrite:
    """Return the write of a service's status."""
    return StatusWrite(gvk=SERVICE, plural=SERVICES, key=key(namespace), uid=uid, status=value, version=version)


def condition(state: str, message: str = "") -> dict[str, object]:
    """Return a condition of type Accepted."""
    return {
        "type": "Accepted",
        "status": state,
        "reason": "Accepted",
        "message": message,
        "lastTransitionTime": "2026-01-02T03:04:05Z",
        "observedGeneration": 1,
    }


async def put(cluster: Cluster, raw: Mapping[str, object]) -> str:
    """Apply a service as a user would; return its uid."""
    return (await cluster.apply(raw, plural=SERVICES, manager="user", is_forced=False)).uid


async def found(cluster: Cluster, namespace: str) -> Mapping[str, object]:
    """Return the service, which must be there."""
    raw = await cluster.get(SERVICE, SERVICES, key(namespace))
    assert raw is not None, "the service that was applied is not there"
    return raw


def part(raw: Mapping[str, object], name: str) -> Mapping[str, object]:
    """Return an object's metadata, spec or status."""
    value = raw.get(name, {})
    assert isinstance(value, Mapping)
    return value


class ClusterConformance:
    """What every cluster must hold to."""

    def run(self, body: Body) -> None:
        """Open a cluster and the stage around it, and run `body` to its end in whatever event loop it needs."""
        raise NotImplementedError("override run(): it opens the cluster under test")

    # --- statuses --------------------------------------------------------------------------------------------------

    def test_a_status_is_written_whole_and_the_spec_stays(self) -> None:
        """What the second write leaves out is gone; neither write is a new generation."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            uid = await put(cluster, service(there))
            await cluster.write_status(
                status(there, uid, {"endpointCount": 3, "ready": True, "conditions": [condition("False", "was")]})
            )
            first = await found(cluster, there)
            assert part(first, "status")["endpointCount"] == 3, f"found {first.get('status')}"
            await cluster.write_status(status(there, uid, {"ready": True, "conditions": [condition("True")]}))
            second = await found(cluster, there)
            assert "endpointCount" not in part(second, "status"), "a field that the second write leaves out stayed"
            listed = part(second, "status")["conditions"]
            assert isinstance(listed, Sequence)
            assert [one["status"] for one in listed] == ["True"], f"found {listed}, expected the one of the last write"
            assert part(second, "metadata")["generation"] == 1, "a status is not a new generation"
            assert second["spec"] == first["spec"], "the spec was changed by a status"

        self.run(body)

    def test_a_status_is_written_whatever_version_was_seen(self) -> None:
        """The one that is there, an older one, or none that is known."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            applied = await cluster.apply(service(there), plural=SERVICES, manager="user", is_forced=False)
            for count, version in enumerate((applied.version, applied.version, "")):
                write = status(there, applied.uid, {"endpointCount": count}, version=version)
                await cluster.write_status(write)
                found_status = part(await found(cluster, there), "status")
                assert found_status == {"endpointCount": count}, f"found {found_status} after the write of {version!r}"

        self.run(body)

    def test_an_equal_status_changes_nothing(self) -> None:
        """No new version: those who watch are not told."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            write = status(there, await put(cluster, service(there)), {"ready": True})
            await cluster.write_status(write)
            before = part(await found(cluster, there), "metadata")["resourceVersion"]
            await cluster.write_status(write)
            after = part(await found(cluster, there), "metadata")["resourceVersion"]
            assert after == before, f"found version {after}, expected {before}: nothing was different"

        self.run(body)

    def test_the_status_of_an_object_that_is_gone_is_not_found(self) -> None:
        """And nothing is created by it."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            uid = await put(cluster, service(there))
            stage.remove(SERVICE, SERVICES, key(there))
            with pytest.raises(ClusterNotFound):
                await cluster.write_status(status(there, uid, {"ready": True}))
            assert await cluster.get(SERVICE, SERVICES, key(there)) is None, "a status has made an object"

        self.run(body)

    def test_an_object_that_was_made_anew_does_not_get_the_status_of_the_old_one(self) -> None:
        """Same name, another uid."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            first = await cluster.apply(service(there), plural=SERVICES, manager="user", is_forced=False)
            stage.remove(SERVICE, SERVICES, key(there))
            assert await put(cluster, service(there)) != first.uid, "a new object has the uid of the old one"
            for version in ("", first.version):
                with pytest.raises(ClusterConflict):
                    await cluster.write_status(status(there, first.uid, {"ready": True}, version=version))
            assert not part(await found(cluster, there), "status"), "the new object has the old one's status"

        self.run(body)

    def test_a_status_that_does_not_fit_its_kind_is_rejected(self) -> None:
        """The error names the status."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            uid = await put(cluster, service(there))
            with pytest.raises(ClusterRejected) as caught:
                await cluster.write_status(status(there, uid, {"ready": "perhaps"}))
            assert "status" in str(caught.value), f"found {caught.value}, expected the field's name in it"

        self.run(body)

    # --- events ----------------------------------------------------------------------------------------------------

    def test_events_are_recorded_and_repeats_are_not_further_events(self) -> None:
        """Equal ones are one; a different note is another."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            uid = await put(cluster, service(there))
            event = ObjectEvent(
                gvk=SERVICE,
                key=key(there),
                uid=uid,
                type="Warning",
                reason="AttachmentNotFound",
                action="Resolve",
                note="vpcattachment attachment is not there",
            )
            await cluster.publish(event)
            await cluster.publish(event)
            await cluster.publish(msgspec.structs.replace(event, type="Normal", reason="Accepted", note="all is well"))
            seen = sorted((one.name, one.type, one.reason, one.note) for one in stage.events(there))
            assert seen == [
                ("shop", "Normal", "Accepted", "all is well"),
                ("shop", "Warning", "AttachmentNotFound", "vpcattachment attachment is not there"),
            ], f"found {seen}"

        self.run(body)

    # --- leases ----------------------------------------------------------------------------------------------------

    def test_a_lease_is_kept_as_it_was_written(self) -> None:
        """All fields, times to the microsecond; one that is not there is None."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            assert await cluster.read_lease(there, "leader") is None
            record = LeaseRecord(
                namespace=there,
                name="leader",
                holder="one",
                duration_s=15,
                acquired_at=1_700_000_000.25,
                renewed_at=1_700_000_001.000001,
                transitions=2,
                labels={"router.datum.net/component": "gateway"},
                annotations={"router.datum.net/report": '{"digest":"d"}'},
                owners=(OwnerReference(api_version="v1", kind="Pod", name="one", uid="some-uid"),),
            )
            written = await cluster.write_lease(record)
            assert written.version, "found no version of a lease that was written"
            assert msgspec.structs.replace(written, version="") == record, f"found {written}, expected {record}"
            assert await cluster.read_lease(there, "leader") == written

        self.run(body)

    def test_a_lease_that_nobody_holds_can_be_written(self) -> None:
        """As a leader does that gives up, and with nothing in it at all."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            free = LeaseRecord(namespace=there, name="leader")
            written = await cluster.write_lease(free)
            held = await cluster.write_lease(msgspec.structs.replace(written, holder="one", renewed_at=1.5))
            given_up = await cluster.write_lease(msgspec.structs.replace(held, holder=""))
            assert msgspec.structs.replace(given_up, version="", renewed_at=0.0) == free

        self.run(body)

    def test_only_the_lease_that_was_read_is_replaced(self) -> None:
        """The second of two who read the same version loses, and nothing of it is left."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            read = await cluster.write_lease(LeaseRecord(namespace=there, name="leader"))
            won = await cluster.write_lease(msgspec.structs.replace(read, holder="one"))
            with pytest.raises(ClusterConflict):
                await cluster.write_lease(msgspec.structs.replace(read, holder="two"))
            assert await cluster.read_lease(there, "leader") == won

        self.run(body)

    def test_only_one_creates_a_lease(self) -> None:
        """The second is told."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            won = await cluster.write_lease(LeaseRecord(namespace=there, name="leader", holder="one"))
            with pytest.raises(ClusterConflict):
                await cluster.write_lease(LeaseRecord(namespace=there, name="leader", holder="two"))
            assert await cluster.read_lease(there, "leader") == won

        self.run(body)

    def test_a_deleted_lease_is_not_brought_back_by_who_read_it_before(self) -> None:
        """Whoever replaces a version that is gone is told."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            written = await cluster.write_lease(LeaseRecord(namespace=there, name="leader", holder="one"))
            await cluster.delete_lease(written)
            with pytest.raises(ClusterConflict):
                await cluster.write_lease(written)
            assert await cluster.read_lease(there, "leader") is None

        self.run(body)

    def test_only_the_lease_that_was_read_is_deleted(self) -> None:
        """One that is gone already is no error."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            read = await cluster.write_lease(LeaseRecord(namespace=there, name="leader", holder="one"))
            now = await cluster.write_lease(msgspec.structs.replace(read, holder="two"))
            with pytest.raises(ClusterConflict):
                await cluster.delete_lease(read)
            assert await cluster.read_lease(there, "leader") == now
            await cluster.delete_lease(now)
            await cluster.delete_lease(now)
            assert await cluster.read_lease(there, "leader") is None

        self.run(body)

    def test_leases_are_listed_by_label_and_name(self) -> None:
        """Only those of the namespace that have all labels."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there, elsewhere = stage.new_namespace(), stage.new_namespace()
            marks = {"router.datum.net/component": "gateway"}
            assert list(await cluster.list_leases(there, labels=marks)) == []
            for namespace, name, labels in (
                (there, "two", {**marks, "zone": "a"}),
                (there, "one", marks),
                (there, "other", {"zone": "a"}),
                (elsewhere, "three", marks),
            ):
                await cluster.write_lease(LeaseRecord(namespace=namespace, name=name, labels=labels))
            names = [lease.name for lease in await cluster.list_leases(there, labels=marks)]
            assert names == ["one", "two"], f"found {names}, expected one and two"
            both = await cluster.list_leases(there, labels={**marks, "zone": "a"})
            assert [lease.name for lease in both] == ["two"]
            assert len(await cluster.list_leases(there, labels={})) == 3

        self.run(body)

    # --- objects ---------------------------------------------------------------------------------------------------

    def test_an_applied_object_is_there(self) -> None:
        """With what the answer says of it; one that is not there is None."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            assert await cluster.get(SERVICE, SERVICES, key(there)) is None
            applied = await cluster.apply(service(there), plural=SERVICES, manager="user", is_forced=False)
            raw = await found(cluster, there)
            metadata = part(raw, "metadata")
            assert raw["apiVersion"] == API_VERSION
            assert raw["kind"] == "VPCService"
            assert part(raw, "spec")["port"] == 8080
            assert applied.key == key(there)
            assert applied.is_changed
            assert (applied.uid, applied.generation, applied.version) == (
                metadata["uid"],
                1,
                metadata["resourceVersion"],
            )

        self.run(body)

    def test_applying_again_tells_whether_anything_changed(self) -> None:
        """The same changes nothing; another port is a new generation, and so is a port that is left out."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            first = await cluster.apply(service(there), plural=SERVICES, manager="user", is_forced=False)
            again = await cluster.apply(service(there), plural=SERVICES, manager="user", is_forced=False)
            assert not again.is_changed, "the same was applied, and something is said to have changed"
            assert (again.uid, again.generation, again.version) == (first.uid, 1, first.version)
            other = await cluster.apply(service(there, port=9090), plural=SERVICES, manager="user", is_forced=False)
            assert other.is_changed
            assert (other.uid, other.generation) == (first.uid, 2)
            assert other.version != first.version

        self.run(body)

    def test_a_deleted_object_is_gone_and_may_be_deleted_again(self) -> None:
        """Without an error, whoever was faster."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            await cluster.apply(service(there), plural=SERVICES, manager="user", is_forced=False)
            await cluster.delete(SERVICE, SERVICES, key(there))
            assert await cluster.get(SERVICE, SERVICES, key(there)) is None, "a deleted object is there"
            await cluster.delete(SERVICE, SERVICES, key(there))

        self.run(body)

    def test_what_a_manager_no_longer_says_is_taken_away(self) -> None:
        """But nothing that another manager says."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            labelled = service(there)
            labelled["metadata"] = {"name": "shop", "namespace": there, "labels": {"team": "a", "tier": "front"}}
            await cluster.apply(labelled, plural=SERVICES, manager="user", is_forced=False)
            theirs = {**service(there), "spec": {}}
            theirs["metadata"] = {"name": "shop", "namespace": there, "labels": {"tier": "front"}}
            del theirs["spec"]
            await cluster.apply(theirs, plural=SERVICES, manager="other", is_forced=False)
            await cluster.apply(service(there), plural=SERVICES, manager="user", is_forced=False)
            labels = part(await found(cluster, there), "metadata").get("labels")
            assert labels == {"tier": "front"}, f"found {labels}, expected tier alone"

        self.run(body)

    def test_a_field_of_another_manager_is_taken_over_only_by_force(self) -> None:
        """Without it the error names the manager and the field."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            await cluster.apply(service(there), plural=SERVICES, manager="user", is_forced=False)
            with pytest.raises(ClusterConflict) as caught:
                await cluster.apply(service(there, port=9090), plural=SERVICES, manager="robot", is_forced=False)
            assert "user" in str(caught.value), f"found {caught.value}, expected the manager's name in it"
            assert ".spec.port" in str(caught.value), f"found {caught.value}, expected the field in it"
            assert part(await found(cluster, there), "spec")["port"] == 8080
            await cluster.apply(service(there, port=9090), plural=SERVICES, manager="robot", is_forced=True)
            assert part(await found(cluster, there), "spec")["port"] == 9090

        self.run(body)

    def test_a_dry_run_tells_and_changes_nothing(self) -> None:
        """Neither a new object nor an old one."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            tried = await cluster.apply(
                service(there), plural=SERVICES, manager="user", is_forced=False, is_dry_run=True
            )
            assert tried.is_changed, "an object that is not there would be changed by this"
            assert await cluster.get(SERVICE, SERVICES, key(there)) is None, "a dry run has made an object"
            await cluster.apply(service(there), plural=SERVICES, manager="user", is_forced=False)
            for port, is_changed in ((8080, False), (9090, True)):
                tried = await cluster.apply(
                    service(there, port=port), plural=SERVICES, manager="user", is_forced=False, is_dry_run=True
                )
                assert tried.is_changed is is_changed, f"port {port} instead of 8080: found {tried.is_changed}"
            assert part(await found(cluster, there), "spec")["port"] == 8080, "a dry run has changed an object"

        self.run(body)

    def test_applying_leaves_the_status_as_it_is(self) -> None:
        """What a user's file says about it is passed over."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            uid = await put(cluster, service(there))
            await cluster.write_status(status(there, uid, {"endpointCount": 3}))
            await put(cluster, {**service(there, port=9090), "status": {"endpointCount": 99}})
            raw = await found(cluster, there)
            assert part(raw, "spec")["port"] == 9090
            assert part(raw, "status") == {"endpointCount": 3}, f"found {raw.get('status')}"

        self.run(body)

    def test_what_is_wrong_with_an_object_is_named(self) -> None:
        """An unknown field and a value out of range; nothing is created."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            spec = part(service(there), "spec")
            for path, wrong in (
                ("spec.colour", {**spec, "colour": "red"}),
                ("spec.port", {**spec, "port": 70_000}),
            ):
                with pytest.raises(ClusterRejected) as caught:
                    await put(cluster, {**service(there), "spec": wrong})
                fields = [field for field, _ in caught.value.causes]
                assert path in fields, f"found {fields} ({caught.value}), expected {path}"
            assert await cluster.get(SERVICE, SERVICES, key(there)) is None, "a bad object was created"

        self.run(body)

    def test_a_kind_that_the_cluster_does_not_have_is_not_found(self) -> None:
        """Unlike an object that is not there, it is an error to ask for it."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            with pytest.raises(ClusterNotFound):
                await cluster.get(NOTHING, "nothings", ObjectKey(kind="Nothing", namespace=there, name="shop"))
            raw = {"apiVersion": NOTHING.api_version, "kind": "Nothing", "metadata": {"name": "x", "namespace": there}}
            with pytest.raises(ClusterNotFound):
                await cluster.apply(raw, plural="nothings", manager="user", is_forced=False)

        self.run(body)

    def test_what_is_written_is_counted(self) -> None:
        """Reads are not."""

        async def body(cluster: Cluster, stage: Stage) -> None:
            there = stage.new_namespace()
            assert cluster.counts().writes == 0
            uid = await put(cluster, service(there))
            await found(cluster, there)
            await cluster.read_lease(there, "leader")
            assert cluster.counts().writes == 1
            await cluster.write_status(status(there, uid, {"ready": True}))
            await cluster.write_lease(LeaseRecord(namespace=there, name="leader"))
            assert cluster.counts().writes == 3

        self.run(body)
