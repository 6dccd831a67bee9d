"""Pool decisions, without a socket."""

from __future__ import annotations

from datum_router.model.endpoint import EndpointKey
from datum_router.model.service import ServiceKey, UpstreamTls
from datum_router_proxy.upstream.pool import Bucket, BucketKey, Choice, Pool, Verdict

SERVICE = ServiceKey("default/backend")
ONE = EndpointKey("10.0.0.1:80")
TWO = EndpointKey("10.0.0.2:80")


class Idle:
    def __init__(self) -> None:
        self.is_good = True

    def is_usable(self) -> bool:
        return self.is_good


class Shared(Idle):
    def __init__(self, room: int = 1) -> None:
        super().__init__()
        self.room = room

    def has_room(self) -> bool:
        return self.is_good and self.room > 0

    def is_unused(self) -> bool:
        return self.room == 1


StubPool = Pool[Idle, Shared]
StubBucket = Bucket[Idle, Shared]


def make(mode: str = "h1", endpoint: EndpointKey = ONE, pool: StubPool | None = None) -> tuple[StubPool, StubBucket]:
    pool = pool if pool is not None else Pool(idle_per_bucket=2)
    return pool, pool.bucket(BucketKey(SERVICE, endpoint, 80, mode), None)[0]


def choose(
    pool: StubPool, bucket: StubBucket, *, most: int = 10, pending: int = 10, **kwargs: bool
) -> Choice[Idle, Shared]:
    return pool.choose(bucket, max_connections=most, max_pending=pending, **kwargs)


def dialled(pool: StubPool, bucket: StubBucket) -> Idle:
    assert choose(pool, bucket).verdict is Verdict.DIAL
    pool.dialled(bucket, is_ok=True)
    return Idle()


def test_youngest_idle_connection_is_used_first() -> None:
    pool, bucket = make()
    old, young = dialled(pool, bucket), dialled(pool, bucket)
    pool.put(bucket, old, 1.0)
    pool.put(bucket, young, 2.0)
    choice = choose(pool, bucket)
    assert (choice.verdict, choice.reused) == (Verdict.REUSE, young)


def test_connection_that_broke_while_idle_is_closed_and_the_next_one_taken() -> None:
    pool, bucket = make()
    good, bad = dialled(pool, bucket), dialled(pool, bucket)
    pool.put(bucket, good, 1.0)
    pool.put(bucket, bad, 2.0)
    bad.is_good = False
    choice = choose(pool, bucket)
    assert (choice.reused, choice.close) == (good, (bad,))


def test_surplus_idle_connections_are_given_up_oldest_first() -> None:
    pool, bucket = make()
    three = [dialled(pool, bucket) for _ in range(3)]
    assert pool.put(bucket, three[0], 1.0) is None
    assert pool.put(bucket, three[1], 2.0) is None
    assert pool.put(bucket, three[2], 3.0) is three[0]


def test_limit_is_per_service_and_evicts_what_is_idle_elsewhere_in_it() -> None:
    pool, one = make()
    _, two = make(endpoint=TWO, pool=pool)
    idle = dialled(pool, one)
    pool.put(one, idle, 1.0)
    choice = choose(pool, two, most=1)
    assert (choice.verdict, choice.close) == (Verdict.DIAL, (idle,))
    pool.closed(one)
    assert choose(pool, one, most=1).verdict is Verdict.WAIT


def test_pending_requests_are_limited_and_counted_once() -> None:
    pool, bucket = make()
    dialled(pool, bucket)
    assert choose(pool, bucket, most=1, pending=1).verdict is Verdict.WAIT
    assert choose(pool, bucket, most=1, pending=1).verdict is Verdict.OVERFLOW
    assert choose(pool, bucket, most=1, pending=1, is_waiting=True).verdict is Verdict.WAIT
    pool.waited(SERVICE)
    assert choose(pool, bucket, most=1, pending=1).verdict is Verdict.WAIT


def test_failed_dial_frees_its_place() -> None:
    pool, bucket = make()
    assert choose(pool, bucket, most=1).verdict is Verdict.DIAL
    pool.dialled(bucket, is_ok=False)
    assert pool.connections == 0
    assert choose(pool, bucket, most=1).verdict is Verdict.DIAL


def test_http2_requests_share_and_wait_for_a_dial_under_way() -> None:
    pool, bucket = make("h2")
    assert choose(pool, bucket).verdict is Verdict.DIAL
    assert choose(pool, bucket).verdict is Verdict.WAIT
    link = Shared(room=2)
    pool.dialled(bucket, link, is_ok=True)
    assert choose(pool, bucket).shared is link
    link.room = 0
    assert choose(pool, bucket).verdict is Verdict.DIAL, "a full connection gets a second one beside it"


def test_alpn_dials_one_at_a_time_until_the_protocol_is_known() -> None:
    pool, bucket = make("auto")
    assert choose(pool, bucket).verdict is Verdict.DIAL
    assert choose(pool, bucket).verdict is Verdict.WAIT
    pool.dialled(bucket, None, is_ok=True)
    assert [choose(pool, bucket).verdict for _ in range(2)] == [Verdict.DIAL, Verdict.DIAL]


def test_fresh_means_no_idle_connection() -> None:
    pool, bucket = make()
    pool.put(bucket, dialled(pool, bucket), 1.0)
    assert choose(pool, bucket, is_fresh=True).verdict is Verdict.DIAL


def test_sweep_closes_old_broken_and_orphaned_connections() -> None:
    pool: StubPool = Pool(idle_per_bucket=9)
    one = make(pool=pool)[1]
    two = make(endpoint=TWO, pool=pool)[1]
    old, broken, young = (dialled(pool, one) for _ in range(3))
    orphan = dialled(pool, two)
    for connection, bucket, since in ((old, one, 0.0), (broken, one, 50.0), (young, one, 50.0), (orphan, two, 50.0)):
        pool.put(bucket, connection, since)
    broken.is_good = False
    idle, links = pool.sweep(61.0, {SERVICE: (60.0, frozenset({ONE}), None)})
    assert set(idle) == {old, broken, orphan}
    assert links == []
    assert choose(pool, one).reused is young


def test_changed_tls_settings_retire_what_is_idle_and_what_is_shared() -> None:
    pool, bucket = make()
    idle = dialled(pool, bucket)
    pool.put(bucket, idle, 1.0)
    link = Shared()
    bucket.shared.append(link)
    fresh, retired, links = pool.bucket(bucket.key, UpstreamTls(server_name="new.example"))
    assert retired == [idle]
    assert links == [link]
    assert fresh is not bucket
    late = Idle()
    assert pool.put(bucket, late, 2.0) is late, "what comes back from before is closed"


def test_a_sweep_closes_what_was_verified_against_settings_that_are_gone() -> None:
    """Nobody need ask for the service again: a CA or a pin that was taken away is gone for idle connections, too."""
    pool, bucket = make()
    idle = dialled(pool, bucket)
    pool.put(bucket, idle, 1.0)
    same = {SERVICE: (60.0, frozenset({ONE}), None)}
    assert pool.sweep(2.0, same) == ([], [])
    pinned = UpstreamTls(subject_alt_names=("spiffe://example.org/web",))
    assert pool.sweep(3.0, {SERVICE: (60.0, frozenset({ONE}), pinned)}) == ([idle], [])
    late = Idle()
    assert pool.put(bucket, late, 4.0) is late
