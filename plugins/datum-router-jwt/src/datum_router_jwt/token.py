"""Verify one token: its form, its signature, and what it says. Pure; the time is an argument.

The order is that of RFC 8725: the algorithm is looked up in the list of those allowed before any key is, and a key is
used with algorithms of its own kind only. Nothing of a token is in a message made here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import jwt
import msgspec

from datum_router_jwt.config import Config
from datum_router_jwt.keys import Key

MAX_TOKEN_BYTES: Final = 16_384
"""Longest token that is looked at."""
MAX_CANDIDATES: Final = 8
"""Keys that are tried for a token that names none."""


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """A token that was verified. `payload` is its second part as it came: base64url without padding."""

    values: Mapping[str, object]
    payload: bytes


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """Why a token is not taken; `is_key_unknown`: other keys might do."""

    said: str
    is_key_unknown: bool = False


def verify(token: bytes, keys: Sequence[Key], config: Config, *, now: float) -> Claims | Refused:
    """Return what a token says, or why it is not taken.

    Args:
        now: Unix seconds.
    """
    parts = token.split(b".")
    if len(parts) != 3 or not all(parts) or len(token) > MAX_TOKEN_BYTES:
        return Refused(said="the token is no signed JWT")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, TypeError):
        return Refused(said="the token is no signed JWT")
    algorithm, key_id = header.get("alg"), header.get("kid")
    if algorithm not in config.algorithms or not isinstance(algorithm, str):
        return Refused(said="the token is signed by an algorithm that is not allowed")
    if "crit" in header:
        return Refused(said="the token has critical extensions")  # RFC 7515 section 4.1.11: none is understood here
    fit = [key for key in keys if algorithm in key.algorithms and (key_id is None or key.id == key_id)]
    if not fit:
        return Refused(said="the token is signed by a key that is not known", is_key_unknown=True)
    for key in fit[:MAX_CANDIDATES]:
        try:
            made = jwt.api_jws.decode(token, key.key, algorithms=[algorithm])  # type: ignore[arg-type]  # its own key
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
        break
    else:
        return Refused(said="the token's signature is wrong", is_key_unknown=key_id is None)
    try:
        claims = msgspec.json.decode(made, type=dict[str, object])
    except msgspec.DecodeError:
        return Refused(said="the token's claims are no JSON object")
    problem = claims_problem(claims, config, now=now)
    return Refused(said=problem) if problem else Claims(values=claims, payload=parts[1])


def claims_problem(claims: Mapping[str, object], config: Config, *, now: float) -> str:
    """Return why claims are not enough, empty if they are (RFC 7519 section 4.1)."""
    leeway = config.leeway_seconds
    times: dict[str, float] = {}
    for name in ("exp", "nbf", "iat"):
        value = claims.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"the token's {name} is no time"
        times[name] = value
    if "exp" not in times:
        return "the token has no exp: it would never expire"
    if now >= times["exp"] + leeway:
        return "the token has expired"
    if any(now < times.get(name, now) - leeway for name in ("nbf", "iat")):
        return "the token is not valid yet"
    if claims.get("iss") != config.issuer:
        return "the token is of another issuer"
    audience = claims.get("aud")
    named = audience if isinstance(audience, list) else [audience]
    if not any(one in named for one in config.audiences):
        return "the token is for another audience"
    for name, wanted in config.required_claims.items():
        if not _says(claims.get(name), wanted):
            return f"the token does not say what is required of {name}"
    return ""


def _says(value: object, wanted: str) -> bool:
    if isinstance(value, str):
        return value == wanted or wanted in value.split(" ")  # `scope` is a list of words (RFC 8693 section 4.2)
    return isinstance(value, list) and wanted in value
