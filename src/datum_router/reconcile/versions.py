"""At which API version each object's generation in force was first seen: what gateways' reports are compared with.

An object that was in force everywhere stays so: a gateway that is replaced, or none at all for a while, is no reason to
write its status twice. Only a new generation, or a gateway that refuses the object, is. Pure.
"""

from __future__ import annotations

from datum_router.manifests.meta import ObjectKey, ObjectMeta, StatusPart
from datum_router.reconcile.conditions import ConditionType, conditions_of, find
from datum_router.reconcile.reports import IN_FORCE, NO_GATEWAY, Verdict, Verdicts, version_number


class FirstVersions:
    """Generations and versions by object."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[ObjectKey, tuple[int, str, str]] = {}  # generation, version, uid

    def note(self, key: ObjectKey, metadata: ObjectMeta | None, *, is_refused: bool) -> None:
        """Take what was read of an object.

        Args:
            metadata: Of the latest version; None: it is gone.
            is_refused: That version is bad, so what was in force before still is.
        """
        if metadata is None:
            self._known.pop(key, None)
        elif not is_refused:
            known = self._known.get(key)
            # One that was deleted and made anew between two looks has the generation of the former.
            is_same = known is not None and (known[0], known[2]) == (metadata.generation, metadata.uid)
            # Versions go back only when the API's data was restored from a copy.
            if known is None or not is_same or version_number(metadata.resource_version) < version_number(known[1]):
                self._known[key] = (metadata.generation, metadata.resource_version, metadata.uid)

    def verdict(
        self,
        verdicts: Verdicts,
        key: ObjectKey,
        metadata: ObjectMeta,
        *,
        status: StatusPart | None,
        is_refused: bool,
    ) -> Verdict:
        """Return whether the generation in force is so on every gateway.

        Args:
            metadata: Of the latest version.
            status: What the object has.
            is_refused: As for `note`.
        """
        known = self._known.get(key)
        generation, version = (metadata.generation, metadata.resource_version) if known is None else known[:2]
        was_in_force = _was_in_force(status, generation)
        verdict = verdicts.of(key, "" if was_in_force else version, labels=metadata.labels, is_refused=is_refused)
        return IN_FORCE if was_in_force and verdict == NO_GATEWAY else verdict


def _was_in_force(status: StatusPart | None, generation: int) -> bool:
    one = find(conditions_of(status), ConditionType.PROGRAMMED)
    return one is not None and one.status == "True" and one.observed_generation == generation
