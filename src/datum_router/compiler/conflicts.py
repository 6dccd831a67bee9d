"""Conflicts: two rules that match exactly the same requests. The one first in the total order wins."""

from __future__ import annotations

from collections.abc import Sequence

from datum_router.model.route import Match, Rule


def find_conflicts(rules: Sequence[Rule]) -> list[tuple[Rule, Rule]]:
    """Return (loser, winner) for every rule whose every host name and match another rule has already taken.

    Args:
        rules: In precedence order, so that the first owner is the winner.
    """
    owners: dict[tuple[str, tuple[str, ...], Match], Rule] = {}
    conflicts: list[tuple[Rule, Rule]] = []
    for rule in rules:
        hosts = rule.hostnames or ("",)
        winner: Rule | None = None
        is_shadowed = True
        for host in hosts:
            key = (host, rule.listeners, rule.match)
            owner = owners.setdefault(key, rule)
            if owner is rule:
                is_shadowed = False
            else:
                winner = owner
        if is_shadowed and winner is not None:
            conflicts.append((rule, winner))
    return conflicts
