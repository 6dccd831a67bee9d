"""The attachments that outbound traffic may come from."""

from __future__ import annotations

from datum_router.compiler.compiler import CompileOptions, Compiler
from datum_router.compiler.diagnostics import Origin
from datum_router.model.egress import EgressAttachment
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, load_plugins
from datum_router.plugins.protocols import Upsert
from datum_router.registry.store import Store
from datum_router_galactic import plugin

PLUGINS = load_plugins(
    [
        Candidate(entry_point="builtin", distribution="datum-router", load=lambda: builtin),
        Candidate(entry_point="galactic", distribution="datum-router-galactic", load=lambda: plugin),
    ]
)


def attachment(name: str, *addresses: str, labels: dict[str, str] | None = None) -> dict[str, object]:
    return {
        "apiVersion": "galactic.datumapis.com/v1alpha",
        "kind": "VPCAttachment",
        "metadata": {"name": name, "namespace": "default", "labels": labels or {}},
        "spec": {"vpc": {"name": "shop", "namespace": "default"}, "interface": {"addresses": list(addresses)}},
        "status": {"ready": True, "identifier": "0001"},
    }


def egress(**spec: object) -> dict[str, object]:
    return {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": "VPCEgress",
        "metadata": {"name": "out", "namespace": "default"},
        "spec": spec,
    }


class Bench:
    def __init__(self) -> None:
        self.store = Store(PLUGINS.kinds)
        self.compiler = Compiler(PLUGINS, CompileOptions())

    def compile(self, *objects: dict[str, object]) -> object:
        for raw in objects:
            name = f"{raw['kind']}-{raw['metadata']['name']}.yaml"  # type: ignore[index]  # an object of this file
            self.store.apply(Upsert(source="t", raw=raw, origin=Origin(source="t", file=name)))
        return self.compiler.compile(self.store.view()).data.egress


def test_attachments_are_known_with_vpc_labels_and_bare_addresses() -> None:
    found = Bench().compile(attachment("web", "10.1.0.5/24", "fd00::5/64", "nonsense", labels={"app": "web"}), egress())
    assert found.attachments == (  # type: ignore[attr-defined]  # it is a policy
        EgressAttachment(
            name="default/web", vpc="default/shop", labels={"app": "web"}, addresses=("10.1.0.5", "fd00::5")
        ),
    )


def test_a_selector_follows_labels_as_they_change() -> None:
    bench = Bench()
    selected = egress(sourceSelector={"matchLabels": {"app": "web"}})
    first = bench.compile(
        selected, attachment("a", "10.1.0.5/24", labels={"app": "web"}), attachment("b", "10.1.0.6/24")
    )
    assert first.rules[0].attachments == ("default/a",)  # type: ignore[attr-defined]  # it is a policy
    second = bench.compile(attachment("b", "10.1.0.6/24", labels={"app": "web"}))
    assert second.rules[0].attachments == ("default/a", "default/b")  # type: ignore[attr-defined]  # as above
