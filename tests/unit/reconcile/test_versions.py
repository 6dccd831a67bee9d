from __future__ import annotations

import msgspec

from datum_router.manifests.meta import ObjectKey, ObjectMeta
from datum_router.manifests.vpcroute import VPCRouteStatus
from datum_router.reconcile.conditions import ConditionType, condition
from datum_router.reconcile.reports import IN_FORCE, NO_GATEWAY, GatewayReport, Refusal, Verdicts
from datum_router.reconcile.versions import FirstVersions

KEY = ObjectKey(kind="VPCRoute", namespace="default", name="r")


def meta(generation: int, version: int) -> ObjectMeta:
    return ObjectMeta(name="r", generation=generation, resource_version=str(version))


def at(version: int, *refused: str) -> Verdicts:
    refusals = tuple(
        Refusal(kind="VPCRoute", namespace="default", name="r", reason=one, message="no") for one in refused
    )
    return Verdicts({"gw": GatewayReport(versions={"VPCRoute": str(version)}, refused=refusals)})


def programmed(generation: int, *, status: bool = True) -> VPCRouteStatus:
    return VPCRouteStatus(
        conditions=(condition(ConditionType.PROGRAMMED, status, "Programmed", generation=generation),)
    )


def verdict(
    versions: FirstVersions,
    verdicts: Verdicts,
    metadata: ObjectMeta,
    status: VPCRouteStatus | None = None,
    *,
    bad: bool = False,
) -> str:
    found = versions.verdict(verdicts, KEY, metadata, status=status, is_refused=bad)
    return "in force" if found == IN_FORCE else found.reason


def test_what_counts_is_the_version_at_which_a_generation_was_first_seen() -> None:
    versions = FirstVersions()
    versions.note(KEY, meta(1, 100), is_refused=False)
    versions.note(KEY, meta(1, 130), is_refused=False)  # its status was written
    assert verdict(versions, at(99), meta(1, 130)) == "Pending"
    assert verdict(versions, at(100), meta(1, 130)) == "in force"
    versions.note(KEY, meta(2, 140), is_refused=False)
    assert verdict(versions, at(130), meta(2, 140), programmed(1)) == "Pending"
    assert verdict(versions, at(140), meta(2, 140), programmed(1)) == "in force"


def test_versions_that_went_back_count_anew() -> None:
    """As they do when a cluster is put back to an older state, and an object comes to the same generation again."""
    versions = FirstVersions()
    versions.note(KEY, meta(2, 500), is_refused=False)
    versions.note(KEY, meta(2, 140), is_refused=False)
    assert verdict(versions, at(139), meta(2, 140), programmed(1)) == "Pending"
    assert verdict(versions, at(140), meta(2, 140), programmed(1)) == "in force"


def test_what_was_in_force_everywhere_stays_so_whoever_comes_and_goes() -> None:
    versions = FirstVersions()
    versions.note(KEY, meta(1, 500), is_refused=False)  # a controller that has just begun
    assert verdict(versions, at(100), meta(1, 500), programmed(1)) == "in force"
    assert verdict(versions, Verdicts({}), meta(1, 500), programmed(1)) == "in force"
    assert verdict(versions, Verdicts({}), meta(1, 500), programmed(1, status=False)) == NO_GATEWAY.reason
    assert verdict(versions, Verdicts({}), meta(1, 500)) == NO_GATEWAY.reason
    assert verdict(versions, at(100, "InvalidValue"), meta(1, 500), programmed(1)) == "InvalidValue"


def test_a_bad_version_says_nothing_of_the_one_in_force() -> None:
    versions = FirstVersions()
    versions.note(KEY, meta(1, 100), is_refused=False)
    versions.note(KEY, meta(2, 110), is_refused=True)
    assert verdict(versions, at(100, "InvalidValue"), meta(2, 110), programmed(1), bad=True) == "in force"
    assert verdict(versions, at(99), meta(2, 110), bad=True) == "Pending"
    versions.note(KEY, meta(3, 120), is_refused=False)
    assert verdict(versions, at(110), meta(3, 120), programmed(1)) == "Pending"


def test_an_object_that_is_made_anew_begins_anew() -> None:
    versions = FirstVersions()
    versions.note(KEY, meta(1, 100), is_refused=False)
    versions.note(KEY, None, is_refused=False)
    versions.note(KEY, meta(1, 200), is_refused=False)
    assert verdict(versions, at(150), meta(1, 200)) == "Pending"


def test_one_that_was_deleted_and_made_anew_unseen_is_another() -> None:
    versions = FirstVersions()
    versions.note(KEY, meta(1, 100), is_refused=False)
    anew = msgspec.structs.replace(meta(1, 180), uid="another")
    versions.note(KEY, anew, is_refused=False)
    assert verdict(versions, at(150), anew) == "Pending"
    assert verdict(versions, at(180), anew) == "in force"
