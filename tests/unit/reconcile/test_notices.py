from __future__ import annotations

from datum_router.manifests.vpcroute import VPCRouteStatus
from datum_router.reconcile.conditions import ConditionType, condition
from datum_router.reconcile.notices import MAX_NOTE_CHARS, notices

C = ConditionType


def status(
    *,
    accepted: bool = True,
    resolved: bool | None = True,
    conflicted: bool = False,
    programmed: str = "True",
    message: str = "",
    generation: int = 1,
) -> VPCRouteStatus:
    reasons = {"True": "Programmed", "False": "Pending", "Unknown": "NoGateway", "refused": "InvalidValue"}
    told = {"True": True, "False": False, "refused": False}.get(programmed)
    return VPCRouteStatus(
        conditions=(
            condition(C.ACCEPTED, accepted, "Accepted" if accepted else "InvalidValue", message, generation=generation),
            condition(
                C.RESOLVED_REFS, resolved, "ResolvedRefs" if resolved else "VPCServiceNotFound", generation=generation
            ),
            condition(C.CONFLICTED, conflicted, "Conflicted" if conflicted else "NoConflicts", generation=generation),
            condition(C.PROGRAMMED, told, reasons[programmed], generation=generation),
        )
    )


def told(old: VPCRouteStatus | None, new: VPCRouteStatus) -> list[tuple[str, str, str]]:
    return [(one.type, one.reason, one.action) for one in notices(old, new)]


def test_a_good_object_makes_no_event() -> None:
    assert told(None, status()) == []
    assert told(status(), status(generation=2)) == []
    assert told(None, status(programmed="False")) == []
    assert told(status(programmed="False"), status()) == [], "it only had to wait"


def test_a_bad_object_is_told_at_once() -> None:
    assert told(None, status(accepted=False)) == [("Warning", "InvalidValue", "Accept")]


def test_every_version_that_is_refused_is_told_once() -> None:
    bad = status(accepted=False, message="port")
    assert told(status(), bad) == [("Warning", "InvalidValue", "Accept")]
    assert told(bad, bad) == []
    again = status(accepted=False, message="port", generation=2)
    assert told(bad, again) == [("Warning", "InvalidValue", "Accept")]
    assert told(again, status(generation=3)) == [("Normal", "Accepted", "Accept")]


def test_references_are_told_when_they_break_and_when_they_hold_again() -> None:
    broken = status(resolved=False)
    assert told(status(), broken) == [("Warning", "VPCServiceNotFound", "ResolveRefs")]
    assert told(broken, status(resolved=False, generation=2)) == [], "nothing new about it"
    assert told(broken, status()) == [("Normal", "ResolvedRefs", "ResolveRefs")]
    assert told(broken, status(resolved=None)) == [], "not known is neither"


def test_conflicts_are_told_when_they_begin_and_end() -> None:
    assert told(status(), status(conflicted=True)) == [("Warning", "Conflicted", "Compare")]
    assert told(status(conflicted=True), status()) == [("Normal", "NoConflicts", "Compare")]


def test_coming_into_force_is_told_only_after_a_failure() -> None:
    refused = status(programmed="refused")
    assert told(status(programmed="False"), refused) == [("Warning", "InvalidValue", "Program")]
    assert told(refused, refused) == []
    assert told(refused, status()) == [("Normal", "Programmed", "Program")]
    assert told(status(programmed="Unknown"), status()) == []


def test_what_gateways_refuse_for_the_same_reason_is_told_once() -> None:
    bad = status(accepted=False, programmed="refused")
    assert told(status(accepted=False, programmed="False"), bad) == []
    assert told(status(), bad) == [("Warning", "InvalidValue", "Accept")]
    assert told(bad, status(generation=2)) == [("Normal", "Accepted", "Accept")]


def test_notes_are_bounded_and_never_empty() -> None:
    (one,) = notices(None, status(accepted=False, message="x" * 5000))
    assert len(one.note) == MAX_NOTE_CHARS
    (one,) = notices(status(resolved=False), status(generation=7))
    assert one.note == "ResolvedRefs is True again (generation 7)"
