"""What may be and what may not be when a cloud is cut off and returns: judged from what was recorded. Pure.

Each function returns what it found wrong, in sentences, empty if all held.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from lab.traffic import Answer

NOTICED_S = 1.0
"""From when a page says that an endpoint is out until every worker knows, on a slow machine too (seconds)."""
LEAST_END_SHARE = 0.3
"""What a cloud that answers half of all requests must have come back to, at least."""
GRADUAL_SHARE = (0.02, 0.6)
"""Of what it comes back to: a second with a share in between is one of a gradual return."""
LEAST_GRADUAL_S = 2
"""How many of these there must be. If one of two endpoints returned at once, it would have two thirds of the end."""


@dataclass(frozen=True)
class Logged:
    """A request as the gateway's access log has it.

    Attributes:
        began: Unix seconds, or those of the clock that `read_log` was asked for.
    """

    began: float
    status: int
    endpoint: str
    attempts: int


@dataclass(frozen=True)
class Outage:
    """When what happened to a cloud, in monotonic seconds.

    Attributes:
        cutting_at, cut_at: Before and after it was cut off: requests in between may be of either.
        out_at: Its probes have failed.
        stale_at: Discovery has marked its endpoints.
        joined_at: It is connected again.
        back_at: Its probes pass.
        heard_at: The mark is gone.
    """

    began: float
    cutting_at: float
    cut_at: float
    out_at: float
    stale_at: float
    joined_at: float
    back_at: float
    heard_at: float
    ended_at: float

    def was_in_flight(self, one: Answer) -> bool:
        """Tell whether a request was under way at the moment of the cut."""
        return one.began < self.cut_at and one.ended > self.cutting_at

    def is_out(self, began: float) -> bool:
        """Tell whether a request began while it was known that the cloud is out."""
        return self.out_at + NOTICED_S <= began < self.joined_at


def judge_answers(answers: Sequence[Answer], outage: Outage, *, other: str) -> list[str]:
    """Judge what the client got: nothing fails but what was in flight at the cut.

    Args:
        other: Name of the cloud that is left.
    """
    wrong = []
    failed = [one for one in answers if one.status != 200 and not outage.was_in_flight(one)]
    if failed:
        at = ", ".join(f"{one.status or 'no answer'} at t={one.began - outage.cut_at:+.2f} s" for one in failed[:5])
        wrong.append(f"{len(failed)} requests failed that were not in flight at the cut: {at}")
    out = [one for one in answers if outage.is_out(one.began)]
    astray = Counter(one.cloud or str(one.status) for one in out if one.cloud != other)
    if astray:
        wrong.append(f"while the cloud was out, {astray.total()} of {len(out)} requests were answered by {astray}")
    if not out:
        wrong.append("no request was sent while the cloud was out, so nothing is known of it")
    return wrong


def judge_log(entries: Sequence[Logged], outage: Outage, *, dead: tuple[str, ...]) -> list[str]:
    """Judge what the gateway did: nothing goes to the cloud once its probes have failed, and nothing fails elsewhere.

    Args:
        entries: Their `began` is of the outage's clock.
        dead: What the cloud's endpoints begin with.
    """
    wrong = []
    entries = [one for one in entries if one.began >= outage.began]
    out = [one for one in entries if outage.is_out(one.began)]
    sent = [one for one in out if one.endpoint.startswith(dead) or one.attempts != 1]
    if sent or not out:
        wrong.append(f"{len(sent)} of {len(out)} requests went to the cloud after its probes had failed: {sent[:1]}")
    elsewhere = [one for one in entries if one.status != 200 and not one.endpoint.startswith(dead)]
    if elsewhere:
        wrong.append(f"{len(elsewhere)} requests failed that were with another cloud, the first: {elsewhere[0]}")
    return wrong


def judge_slices(events: Sequence[Mapping[str, object]], cluster: str) -> list[str]:
    """Judge every version of every slice that a watch has seen: endpoints stay, the mark comes once and goes once."""
    wrong = []
    first: dict[str, object] = {}
    marks: dict[str, list[bool]] = {}
    for event in events:
        found = slice_of(event.get("object"))
        if found is None or found.cluster != cluster:
            continue
        if event["type"] == "DELETED":
            wrong.append(f"slice {found.name} was deleted")
            continue
        if first.setdefault(found.name, found.endpoints) != found.endpoints:
            wrong.append(f"slice {found.name}: endpoints {first[found.name]} became {found.endpoints}")
        seen = marks.setdefault(found.name, [])
        if not seen or seen[-1] is not bool(found.stale_since):
            seen.append(bool(found.stale_since))
    flickering = {name: seen for name, seen in marks.items() if seen != [False, True, False]}
    if flickering or not marks:
        wrong.append(f"expected the stale mark to come once and to go once on each slice: {flickering or 'no slice'}")
    return wrong


def judge_return(shares: Sequence[float]) -> list[str]:
    """Judge the cloud's share, second by second since it is connected again: it grows to about what it was."""
    end = sum(shares[-2:]) / 2
    low, high = GRADUAL_SHARE
    gradual = sum(low * end < one < high * end for one in shares)
    if end >= LEAST_END_SHARE and gradual >= LEAST_GRADUAL_S:
        return []
    told = " ".join(f"{one:.0%}" for one in shares)
    return [
        f"the cloud did not return gradually: {told}; expected {LEAST_GRADUAL_S} seconds or more with {low:.0%} to "
        f"{high:.0%} of what it has at the end, and {LEAST_END_SHARE:.0%} then"
    ]


def share(answers: Sequence[Answer], start: float, end: float, cloud: str) -> float:
    """Return a cloud's share of the requests that began in a time; 0 if there are none."""
    counts = Counter(one.cloud for one in answers if start <= one.began < end)
    return counts[cloud] / max(1, counts.total())


# --- what is read --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SliceSeen:
    """One version of an EndpointSlice of discovery.

    Attributes:
        endpoints: Addresses, and whether they serve.
        annotations: Without what they all begin with.
    """

    name: str
    service: str
    cluster: str
    endpoints: tuple[tuple[str, bool], ...]
    annotations: Mapping[str, str]

    @property
    def stale_since(self) -> str:
        """Since when the cluster cannot be heard; empty while it can."""
        return self.annotations.get("stale-since", "")


def slice_of(raw: object) -> SliceSeen | None:
    """Return what discovery wrote as EndpointSlice; None for one that is not of discovery."""
    if not isinstance(raw, dict):
        return None
    meta = raw["metadata"]
    cluster = meta.get("labels", {}).get("router.datum.net/source-cluster", "")
    if not cluster:
        return None
    prefix = "router.datum.net/"
    notes = {key.removeprefix(prefix): text for key, text in meta["annotations"].items() if key.startswith(prefix)}
    members = [(one["addresses"][0], one["conditions"]["ready"]) for one in raw.get("endpoints") or ()]
    return SliceSeen(meta["name"], notes.get("vpc-service", ""), cluster, tuple(members), notes)


def read_events(text: str) -> Iterator[dict[str, object]]:
    """Yield what `kubectl get --watch --output-watch-events -o json` has printed, but for a last one that is cut."""
    decoder = json.JSONDecoder()
    rest = text.lstrip()
    while rest:
        try:
            event, end = decoder.raw_decode(rest)
        except ValueError:
            return
        yield event
        rest = rest[end:].lstrip()


def read_log(text: str, route: str, *, skew_s: float = 0.0) -> list[Logged]:
    """Return the requests of a route in the gateway's access log.

    Args:
        skew_s: Unix seconds minus those of the clock that is wanted.
    """
    found: list[Logged] = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict) or entry.get("route") != route or "duration_ms" not in entry:
            continue
        began = datetime.fromisoformat(entry["time"]).timestamp() - entry["duration_ms"] / 1000 - skew_s
        found.append(Logged(began, entry["status"], entry["endpoint"], entry["attempts"]))
    return found
