"""Public keys of an issuer: read from a JWKS (RFC 7517), kept, and fetched again when they are old.

Theory of operation. The store says what is due and takes what came; whoever uses it makes the calls. Keys that are
older than `cache_s` serve on while they are fetched once more on the side; only without any keys, or with too old ones,
must a request wait. A token that names an unknown key makes for one fetch more, but not more often than every
`UNKNOWN_KEY_S`, since anybody can send such a token. A fetch of which nothing is heard any more (the client that waited
has left) is forgotten after its time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import jwt
import msgspec

from datum_router_jwt.config import ALGORITHMS

MAX_JWKS_BYTES: Final = 65_536
"""Longest key set that is read."""
MAX_KEYS: Final = 64
"""Most keys of a set that are used."""
MAX_FETCHES: Final = 8
"""Requests that may wait for keys at a time; others are refused until there are some."""
RETRY_S: Final = 1.0
"""Seconds after a fetch that failed before the next one."""
UNKNOWN_KEY_S: Final = 10.0
"""Seconds between two fetches for keys that nobody knows."""
MIN_RSA_BITS: Final = 2048
_FAMILIES: Final[Mapping[str, str]] = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
"""Which keys make signatures of an algorithm (RFC 7518 section 6, RFC 8037): a key of another kind is never tried."""

_CURVES: Final[Mapping[str, str]] = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One public key: `algorithms` are those that it may be used with."""

    id: str
    algorithms: frozenset[str]
    key: object


class _Jwk(msgspec.Struct, frozen=True, kw_only=True):
    kty: str
    kid: str = ""
    use: str = "sig"
    alg: str = ""
    key_ops: tuple[str, ...] = ("verify",)
    crv: str = ""
    d: str = ""


class _Jwks(msgspec.Struct, frozen=True, kw_only=True):
    keys: list[msgspec.Raw]


def read_keys(text: bytes, algorithms: Sequence[str]) -> tuple[Key, ...]:
    """Return the keys of a set that verify signatures; what else is in it is passed over (RFC 7517 section 5).

    Raises:
        ValueError: It is no key set, or none of its keys can be used; the message holds nothing of it.
    """
    if len(text) > MAX_JWKS_BYTES:
        raise ValueError(f"a key set of more than {MAX_JWKS_BYTES} bytes")
    try:
        parts = msgspec.json.decode(text, type=_Jwks).keys
    except msgspec.DecodeError:
        raise ValueError("no JSON Web Key Set") from None
    keys = [key for part in parts[:MAX_KEYS] if (key := _read_key(bytes(part), algorithms)) is not None]
    if not keys:
        raise ValueError(f"no key for {', '.join(algorithms)}")
    return tuple(keys)


def _read_key(text: bytes, algorithms: Sequence[str]) -> Key | None:
    try:
        jwk = msgspec.json.decode(text, type=_Jwk)
    except msgspec.DecodeError:
        return None
    allowed = frozenset(
        name for name in algorithms if name in ALGORITHMS and _FAMILIES[name[:2]] == jwk.kty and jwk.alg in ("", name)
    )
    if jwk.kty == "EC":
        allowed &= {_CURVES.get(jwk.crv, "")}
    if not allowed or jwk.use != "sig" or "verify" not in jwk.key_ops or jwk.d:
        return None  # nobody publishes a private key (`d`) on purpose: what it signs proves nothing
    try:
        # One of the names will do: which algorithm is used is decided for each token, among those allowed.
        made = jwt.PyJWK(msgspec.json.decode(text, type=dict[str, object]), algorithm=sorted(allowed)[0]).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if jwk.kty == "RSA" and getattr(made, "key_size", 0) < MIN_RSA_BITS:
        return None
    return Key(id=jwk.kid, algorithms=allowed, key=made)


class KeyStore:
    """The keys of one issuer in one process. `now` is monotonic seconds.

    Attributes:
        problem: Why the last fetch brought no keys; empty if it did, and before the first.
    """

    __slots__ = ("__weakref__", "_algorithms", "_asked_at", "_cache_s", "_failed_at", "_fetched_at", "_stale_s",
                 "_timeout_s", "_waiting", "keys", "problem")  # fmt: skip

    def __init__(self, algorithms: Sequence[str], *, cache_s: float, stale_s: float, timeout_s: float) -> None:
        self._algorithms = tuple(algorithms)
        self._cache_s = cache_s
        self._stale_s = stale_s
        self._timeout_s = timeout_s
        self.keys: tuple[Key, ...] = ()
        self.problem = ""
        self._fetched_at = float("-inf")
        self._failed_at = float("-inf")
        self._asked_at = float("-inf")  # for a key that nobody knows
        self._waiting: list[float] = []  # until when each fetch may last

    def usable(self, now: float) -> tuple[Key, ...]:
        """Return the keys, none if they are too old."""
        return self.keys if now - self._fetched_at <= self._stale_s else ()

    def is_due(self, now: float) -> bool:
        """Tell whether keys are old and nobody is fetching others."""
        return now - self._fetched_at > self._cache_s and not self._is_fetching(now) and self._may_retry(now)

    def may_wait(self, now: float) -> bool:
        """Tell whether one request more may fetch keys and wait for them."""
        self._is_fetching(now)
        return len(self._waiting) < MAX_FETCHES and self._may_retry(now)

    def may_ask_for_unknown(self, now: float) -> bool:
        """Tell whether keys may be fetched for the sake of one that nobody knows; a yes uses up the permission."""
        if now - max(self._asked_at, self._fetched_at) < UNKNOWN_KEY_S or not self._may_retry(now):
            return False
        self._asked_at = now
        return True

    def begin(self, now: float) -> None:
        """Note that keys are being fetched."""
        self._waiting.append(now + self._timeout_s + 1.0)

    def take(self, text: bytes, now: float) -> str:
        """Take what was fetched; return what is wrong with it. Keys that are there stay then."""
        try:
            self.keys = read_keys(text, self._algorithms)
        except ValueError as error:
            return self.fail(str(error), now)
        self._forget_one()
        self._fetched_at = now
        self._failed_at = float("-inf")
        self.problem = ""
        return ""

    def fail(self, why: str, now: float) -> str:
        """Note that a fetch brought nothing, and return why. Keys that are there stay."""
        self._forget_one()
        self._failed_at = now
        self.problem = why
        return why

    def _forget_one(self) -> None:
        if self._waiting:
            self._waiting.pop(0)

    def _may_retry(self, now: float) -> bool:
        return now - self._failed_at >= RETRY_S

    def _is_fetching(self, now: float) -> bool:
        self._waiting = [until for until in self._waiting if until > now]
        return bool(self._waiting)
