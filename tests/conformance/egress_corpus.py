"""The corpus of egress tricks, and what is made of it: `egress/*.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import yaml

from datum_router.compiler.compiler import CompileOptions, Compiler
from datum_router.compiler.diagnostics import Origin
from datum_router.model.egress import EgressPolicy
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, load_plugins
from datum_router.plugins.protocols import Upsert
from datum_router.registry.store import Store

ROOT = Path(__file__).resolve().parent / "egress"


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One trick."""

    line: str
    verdict: str
    reason: str
    comment: str = ""

    def words(self, port: int) -> tuple[str, str]:
        """Return verb and target."""
        verb, _, target = self.line.replace("{port}", str(port)).partition(" ")
        return verb, target


class Corpus(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file."""

    policies: Mapping[str, Mapping[str, object]]
    names: Mapping[str, tuple[tuple[str, ...], ...]]
    cases: tuple[Case, ...]

    def specs(self, port: int) -> Mapping[str, Mapping[str, object]]:
        """Return the policies for a test upstream at `port`."""
        text = msgspec.json.encode(self.policies).replace(b'"{port}"', b"%d" % port)
        return msgspec.json.decode(text, type=dict[str, dict[str, object]])


def load(name: str) -> Corpus:
    """Read a file."""
    return msgspec.convert(yaml.safe_load((ROOT / name).read_text()), Corpus)


def compile_policies(policies: Mapping[str, Mapping[str, object]]) -> EgressPolicy:
    """Compile VPCEgresses of namespace `default`; none of them may have an error."""
    plugins = load_plugins([Candidate(entry_point="builtin", distribution="datum-router", load=lambda: builtin)])
    store = Store(plugins.kinds)
    for name, spec in policies.items():
        raw = {
            "apiVersion": "router.datum.net/v1alpha1",
            "kind": "VPCEgress",
            "metadata": {"name": name, "namespace": "default"},
            "spec": dict(spec),
        }
        store.apply(Upsert(source="test", raw=raw, origin=Origin(source="test", file=f"{name}.yaml")))
    result = Compiler(plugins, CompileOptions()).compile(store.view())
    assert [one.render() for one in result.diagnostics] == []
    assert result.data.egress is not None
    return result.data.egress


class Answers:
    """What a name server says: one list after the other, the last one for ever."""

    def __init__(self, names: Mapping[str, tuple[tuple[str, ...], ...]]) -> None:
        self._names = names
        self.asked: list[str] = []

    def ask(self, name: str) -> tuple[str, ...]:
        """Return the addresses of a name; empty: it is not there."""
        lists = self._names.get(name, ((),))
        at = min(self.asked.count(name), len(lists) - 1)
        self.asked.append(name)
        return lists[at]
