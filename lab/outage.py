"""The last step: GCP is cut off under load, and returns."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from lab import chart, verdict
from lab.network import cut_off, reconnect
from lab.plan import AWS, BLUE, GCP, PREM, PUBLIC_ADDRESS, VISITOR, backend
from lab.story import Lab, Say, shown
from lab.traffic import Answer, Load, ask_many, health, wait_for
from lab.verdict import Logged, Outage

RATE = 100.0
LOAD_THREADS = 24
BEFORE_S = 3.0
OUT_S = 3.0
"""How long the load goes on, at least, when nothing goes to GCP."""
SLOW_START_S = 8.0
"""As in lab/manifests."""
AFTER_S = 3.0
STALE_PATIENCE_S = 150.0
"""A connection that nobody answers on is given up after half a minute; then the API is asked once more."""
ROUTE = "blue/public-shop"
SERVICE = "blue/shop"


def failover(lab: Lab, say: Say) -> list[str]:
    """Cut GCP off under load until its probes fail and its cluster is not heard, connect it again; judge everything."""
    pod = backend(GCP, BLUE)
    dead = (f"{pod.ipv4}:", f"[{pod.ipv6}]:")
    endpoints = set(health(SERVICE))
    astray: set[str] = set()

    def states() -> dict[str, str]:
        found = health(SERVICE)
        astray.update(endpoints.symmetric_difference(found))
        return found

    def is_out() -> bool:
        return all(state == "unhealthy" for key, state in states().items() if key.startswith(dead))

    def is_back() -> bool:
        return all(state == "healthy" for state in states().values())

    def is_stale() -> bool:
        states()
        return all(one.stale_since for one in lab.slices() if one.cluster == GCP.name)

    def is_heard() -> bool:
        states()
        return not any(one.stale_since for one in lab.slices())

    wait_for("both clouds answer alike, after their slow start", _is_even)
    watch = "watch-slices"
    lab.processes.start(watch, AWS.name, lab.here.watch_command("endpointslices", BLUE.name))
    log = lab.processes.output(watch)
    wait_for("slices are watched", lambda: len(list(verdict.read_events(log.read_text()))) >= len(_of(lab)))
    with Load(
        VISITOR, PUBLIC_ADDRESS, name="blue.example.com", path="/shop", per_second=RATE, threads=LOAD_THREADS
    ) as load:
        began = time.monotonic()
        _pause(BEFORE_S)
        cutting_at = time.monotonic()
        cut_off(GCP)
        cut_at = time.monotonic()
        say(f"  t=+0.00 s  GCP is cut off under {RATE:g} requests/s: its packets vanish, its API server's as well")
        out_at = wait_for("probes of both endpoints in GCP fail", is_out)
        say(f"  t=+{out_at - cut_at:.2f} s  its probes have failed")
        stale_at = wait_for("GCP's slices are marked as stale", is_stale, timeout_s=STALE_PATIENCE_S)
        say(f"  t=+{stale_at - cut_at:.2f} s  its cluster is not heard: its endpoints stay, and are marked as stale")
        wait_for("the controller tells that GCP is not heard", lambda: "not heard" in _told_of_endpoints(lab))
        say(f"             vpcservice {SERVICE}: {_told_of_endpoints(lab)}")
        _pause(out_at + verdict.NOTICED_S + OUT_S - time.monotonic())
        joined_at = time.monotonic()
        reconnect(GCP)
        say(f"  t=+{joined_at - cut_at:.2f} s  it is connected again")
        back_at = wait_for("probes of both endpoints in GCP pass", is_back)
        say(f"  t=+{back_at - cut_at:.2f} s  its probes pass, {back_at - joined_at:.2f} s later")
        heard_at = wait_for("GCP's slices are marked no more", is_heard, timeout_s=STALE_PATIENCE_S)
        say(f"  t=+{heard_at - cut_at:.2f} s  its cluster is heard, the mark is gone")
        _pause(back_at + SLOW_START_S + AFTER_S - time.monotonic())
        ended_at = time.monotonic()
    skew_s = time.time() - time.monotonic()
    lab.processes.stop(watch)
    answers = load.answers
    outage = Outage(began, cutting_at, cut_at, out_at, stale_at, joined_at, back_at, heard_at, ended_at)
    seconds = range(int(ended_at - joined_at))
    entries = lab.log(ROUTE, skew_s=skew_s)
    _tell(answers, entries, outage, say)
    wrong = verdict.judge_answers(answers, outage, other=PREM.name)
    wrong += verdict.judge_log(entries, outage, dead=dead)
    wrong += verdict.judge_slices(list(verdict.read_events(log.read_text())), GCP.name)
    wrong += verdict.judge_return(
        [verdict.share(answers, joined_at + second, joined_at + second + 1, GCP.name) for second in seconds]
    )
    if astray:
        wrong.append(f"endpoints came or went at the gateway meanwhile: {sorted(astray)}")
    return wrong


def _tell(answers: list[Answer], entries: list[Logged], outage: Outage, say: Say) -> None:
    """Show what became of the requests."""

    def told(what: str, chosen: Callable[[Answer], bool]) -> None:
        some = [one for one in answers if chosen(one)]
        clouds = Counter(one.cloud for one in some if one.status == 200)
        failed = sum(one.status != 200 for one in some)
        longest = max((one.ended - one.began for one in some), default=0.0)
        say(f"    {what:<38} {len(some):>5}: {shown(clouds)}; {failed} failed; the longest took {longest:.2f} s")

    again = [one.began - outage.cut_at for one in entries if one.attempts > 1 and one.began >= outage.began]
    tried = (
        f"{len(again)} were tried again, begun at t={min(again):+.2f} to {max(again):+.2f} s" if again else "none twice"
    )
    say(f"  {len(answers)} requests at {RATE:g}/s; {tried}")
    told("before the cut", lambda one: one.ended <= outage.cutting_at)
    told("in flight at the cut", outage.was_in_flight)
    told("begun after it, until probes failed", lambda one: outage.cut_at <= one.began < outage.out_at)
    told("from then until it was connected again", lambda one: outage.out_at <= one.began < outage.joined_at)
    told("after that", lambda one: outage.joined_at <= one.began)
    events = {
        "C": outage.cut_at,
        "P": outage.out_at,
        "S": outage.stale_at,
        "J": outage.joined_at,
        "B": outage.back_at,
        "H": outage.heard_at,
    }
    say("  who answered: Cut off, Probes failed, Stale, Joined again, probes Back, Heard")
    for line in chart.draw(answers, (GCP.name, PREM.name), events, start=outage.began, end=outage.ended_at):
        say(f"  {line}")


def _is_even() -> bool:
    """Tell whether GCP answers about half of some requests."""
    times = 40
    answers = ask_many(VISITOR, PUBLIC_ADDRESS, name="blue.example.com", path="/shop", times=times)
    return 0.45 * times <= sum(one.cloud == GCP.name for one in answers) <= 0.55 * times


def _of(lab: Lab) -> list[str]:
    return [one.name for one in lab.slices() if one.annotations["vpc"].startswith(f"{BLUE.name}/")]


def _told_of_endpoints(lab: Lab) -> str:
    """Return what the VPCService in AWS says of its endpoints."""
    status = lab.here.get(f"/apis/router.datum.net/v1alpha1/namespaces/{BLUE.name}/vpcservices/shop").get("status")
    found = status.get("conditions", ()) if isinstance(status, dict) else ()
    return " ".join(
        f"{one['type']}={one['status']}: {one['message']}" for one in found if one["type"] == "EndpointsReady"
    )


def _pause(seconds: float) -> None:
    """Let the load go on for a while."""
    if seconds > 0:
        time.sleep(seconds)
