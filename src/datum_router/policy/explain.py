"""Say what a rule's retries and time limits come to for one request: what `datum-router explain` shows of them."""

from __future__ import annotations

import msgspec

from datum_router.model.policy import RetryPolicy, TimeoutPolicy
from datum_router.policy import hedge
from datum_router.policy.retry import IDEMPOTENT, MAX_UNREACHED_RETRIES


class PolicyReport(msgspec.Struct, frozen=True, kw_only=True):
    """The effective policy for one method. Seconds; None: no limit of that kind.

    Attributes:
        repeats: When an attempt that the upstream may have acted on is repeated: `always`, `never`, with `why`.
        retry_on: Conditions, statuses and codes of gRPC, as text.
        spares_sessions: Requests that go to the endpoint of their session are not hedged; False also without hedges.
    """

    max_retries: int
    retry_on: tuple[str, ...]
    repeats: str
    why: str
    budget_percent: int
    backoff_s: tuple[float, float]
    hedge_delay_s: float | None
    hedge_attempts: int
    spares_sessions: bool
    request_s: float | None
    connect_s: float | None
    per_try_s: float | None
    backend_request_s: float | None
    stream_idle_s: float | None
    is_deadline_propagated: bool


def explain_policy(
    retry: RetryPolicy, timeouts: TimeoutPolicy, method: str, *, has_sessions: bool = False
) -> PolicyReport:
    """Return what the policies mean for a request with `method`.

    Args:
        has_sessions: The rule has session affinity. Whether a request is one of a session only a gateway can tell.
    """
    is_safe = method in IDEMPOTENT
    is_hedged = hedge.is_hedged(retry, method, has_body=False, is_tunnel=False, is_retry=False)
    if not retry.max_retries:
        repeats, why = "never", "maxRetries is 0"
    elif is_safe:
        repeats, why = "always", f"{method} is idempotent"
    elif retry.retry_non_idempotent:
        repeats, why = "always", "retryNonIdempotent says so"
    else:
        repeats, why = "never", f"{method} is not idempotent, and retryNonIdempotent is false"
    return PolicyReport(
        max_retries=retry.max_retries,
        retry_on=(
            *(condition.value for condition in retry.retry_on),
            *(f"status {status}" for status in retry.retry_on_status),
            *(f"grpc-status {code}" for code in retry.retry_on_grpc),
        )
        if retry.max_retries
        else (),
        repeats=repeats,
        why=why,
        budget_percent=retry.budget_percent,
        backoff_s=(retry.initial_backoff_s, retry.max_backoff_s),
        hedge_delay_s=retry.hedge_delay_s if is_hedged else None,
        hedge_attempts=retry.hedge_attempts if is_hedged else 1,
        spares_sessions=is_hedged and has_sessions,
        request_s=timeouts.request_s or None,
        connect_s=timeouts.connect_s,
        per_try_s=timeouts.per_try_s or None,
        backend_request_s=timeouts.backend_request_s or None,
        stream_idle_s=timeouts.stream_idle_s or None,
        is_deadline_propagated=timeouts.propagates,
    )


def stream_policy_lines(retry: RetryPolicy, timeouts: TimeoutPolicy) -> list[str]:
    """Return what the policies mean where bytes are carried on, as lines for people: nothing is sent twice there."""
    others = f"{retry.max_retries} other{'' if retry.max_retries == 1 else 's'}"
    tries = f"up to {others} if an endpoint cannot be reached" if retry.max_retries else "none"
    connect = f"connect {timeouts.connect_s:g} s, " if timeouts.connect_s else ""
    return [f"retries: {tries}", f"timeouts: {connect}silence as tcp_idle_timeout_s of the data plane says"]


def policy_lines(report: PolicyReport) -> list[str]:
    """Return the report as lines for people."""
    if not report.max_retries:
        lines = [f"retries: none ({report.why})"]
    else:
        first, longest = report.backoff_s
        lines = [
            f"retries: up to {report.max_retries} on {', '.join(report.retry_on) or 'nothing'}",
            f"    after a random wait of up to {first:g} s, twice as long each time, up to {longest:g} s",
            f"    as long as retries in flight are at most {report.budget_percent}% of first tries, or 3",
            f"    what may have been processed is {'repeated' if report.repeats == 'always' else 'not repeated'}: "
            f"{report.why}",
        ]
        if 0 < report.max_retries < MAX_UNREACHED_RETRIES and "connect-failure" in report.retry_on:
            lines.append(f"    an endpoint that cannot be reached is followed by up to {MAX_UNREACHED_RETRIES} others")
    if report.hedge_delay_s is not None:
        lines.append(
            f"hedging: without a body, up to {report.hedge_attempts} at once, another one after each "
            f"{report.hedge_delay_s:g} s without a response head"
        )
        if report.spares_sessions:
            lines.append("    a request that goes to the endpoint of its session is not hedged")
    limits = (
        ("request", report.request_s),
        ("connect", report.connect_s),
        ("one try, to its response head", report.per_try_s),
        ("one try as a whole", report.backend_request_s),
        ("silence", report.stream_idle_s),
    )
    said = [f"{name} {seconds:g} s" for name, seconds in limits if seconds]
    lines.append(f"timeouts: {', '.join(said) or 'none'}")
    if report.is_deadline_propagated:
        lines.append("    the time left is told upstream, in x-envoy-expected-rq-timeout-ms or grpc-timeout")
    return lines
