"""Where the cluster is that manifests come from, as plugins find it in them."""

from __future__ import annotations

from collections.abc import Sequence

from datum_router.compiler.memo import Changes, Made, RecordingView
from datum_router.compiler.refs import Finding
from datum_router.compiler.services import finding_of
from datum_router.manifests.meta import ObjectKey
from datum_router.model.endpoint import UNKNOWN_LOCALITY, Locality
from datum_router.plugins.protocols import ManifestView, PlaceFinder, PlaceResult


class PlaceCompiler:
    """Ask plugins for the place, and each again only if what it looked at has changed."""

    __slots__ = ("_finders", "_made")

    def __init__(self, finders: Sequence[PlaceFinder]) -> None:
        self._finders = finders
        self._made: list[Made[PlaceResult]] = []

    def forget(self) -> None:
        """Begin from nothing with the next view."""
        self._made = []

    def update(self, view: ManifestView, changes: Changes) -> None:
        """Bring the place up to date."""
        if not self._made:
            self._made = [_ask(finder, view) for finder in self._finders]
            return
        self._made = [
            made if changes.looks.isdisjoint(made.looks) else _ask(finder, view)
            for finder, made in zip(self._finders, self._made, strict=True)
        ]

    @property
    def place(self) -> Locality:
        """Return the place that the first finder knows, or the unknown one."""
        return next(
            (made.result.place for made in self._made if made.result.place != UNKNOWN_LOCALITY), UNKNOWN_LOCALITY
        )

    @property
    def findings(self) -> list[Finding]:
        """Return what is wrong with manifests that say where the cluster is."""
        return [finding for made in self._made for finding in made.findings]


def _ask(finder: PlaceFinder, view: ManifestView) -> Made[PlaceResult]:
    recording = RecordingView(view)
    found = finder.find(recording)
    nobody = ObjectKey(kind="ServingLocation", namespace="", name="")
    return Made(found, tuple(finding_of(problem, nobody) for problem in found.problems), tuple(recording.looks))
