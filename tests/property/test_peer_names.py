"""Comparing names of certificates, against a slow and obvious oracle."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from datum_router.policy.peer_names import NameList, PeerNames, is_pattern, is_spiffe_id

WORDS = st.sampled_from(["a", "b", "A", "ab", ".", "..", "", "a.b", "*", "%2e", "a b"])
DOMAINS = st.sampled_from(["x", "y", "X", "x.y", "x.", "x:1", "", "*"])


@st.composite
def identities(draw: st.DrawFn) -> str:
    scheme = draw(st.sampled_from(["spiffe://", "spiffe://", "Spiffe://", "https://"]))
    path = draw(st.lists(WORDS, max_size=3))
    return scheme + draw(DOMAINS) + "".join(f"/{word}" for word in path)


def covers(pattern: str, identity: str) -> bool:
    """Compare segment by segment."""
    if not is_spiffe_id(identity):
        return False
    wanted, found = pattern.split("/"), identity.split("/")
    if wanted[-1] == "*" and len(wanted) > 3:
        is_below = len(found) >= len(wanted) and found[: len(wanted) - 1] == wanted[:-1]
        return is_spiffe_id(pattern[:-2]) and is_below
    return wanted == found and is_spiffe_id(pattern)


@given(patterns=st.lists(identities(), max_size=3), uris=st.lists(identities(), max_size=2))
def test_spiffe_ids_match_by_whole_segments_and_only_if_there_is_one(patterns: list[str], uris: list[str]) -> None:
    spiffe = [one for one in patterns if one.lower().startswith("spiffe")]
    expected = len(uris) == 1 and any(covers(pattern, uris[0]) for pattern in spiffe)
    assert bool(NameList(spiffe).match(PeerNames(uris=tuple(uris)))) is expected


@given(text=st.text(max_size=40), others=st.lists(st.text(max_size=40), max_size=3))
def test_a_list_takes_nothing_but_its_own_names(text: str, others: list[str]) -> None:
    names = PeerNames(dns=(text,), uris=(text,))
    found = NameList(others).match(names)
    assert not found or found.lower() in {other.lower() for other in others if is_pattern(other)}
