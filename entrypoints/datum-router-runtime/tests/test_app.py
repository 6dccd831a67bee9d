"""Where a gateway listens, by its settings and by what VPCIngresses ask for."""

import pytest

from datum_router.compiler.compiler import Compiler
from datum_router.compiler.diagnostics import Origin
from datum_router.plugins import builtin
from datum_router.plugins.manager import Candidate, load_plugins
from datum_router.plugins.protocols import Upsert
from datum_router.registry.store import Store
from datum_router_runtime.app import compile_options
from datum_router_runtime.settings import Address, GatewaySettings

INGRESS = {
    "apiVersion": "router.datum.net/v1alpha1",
    "kind": "VPCIngress",
    "metadata": {"name": "edge"},
    "spec": {"host": "a.test"},
}


def listeners(settings: GatewaySettings, *, has_ingress: bool) -> list[tuple[str, str, int]]:
    plugins = load_plugins([Candidate(entry_point="builtin", distribution="", load=lambda: builtin)])
    store = Store(plugins.kinds)
    if has_ingress:
        store.apply(Upsert(source="test", raw=INGRESS, origin=Origin(source="test", file="edge.yaml")))
    result = Compiler(plugins, compile_options(settings)).compile(store.view())
    return [(item.name, item.host, item.port) for item in result.data.listeners]


def test_without_a_setting_only_a_vpcingress_opens_a_port_to_others() -> None:
    assert listeners(GatewaySettings(), has_ingress=False) == [("plain-127.0.0.1-8080", "127.0.0.1", 8080)]
    assert listeners(GatewaySettings(), has_ingress=True) == [("http-8080", "0.0.0.0", 8080)]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "127.0.0.7"])
def test_the_first_vpcingress_takes_over_the_sockets_of_the_address_to_bind(host: str) -> None:
    settings = GatewaySettings(bind=host)
    assert listeners(settings, has_ingress=False) == [("http-8080", host, 8080)]
    assert listeners(settings, has_ingress=True) == [("http-8080", host, 8080)]


def test_a_listen_setting_takes_the_place_of_everything() -> None:
    settings = GatewaySettings(bind="0.0.0.0", listen=Address(host="127.0.0.1", port=81))
    assert listeners(settings, has_ingress=True) == [("plain-127.0.0.1-81", "127.0.0.1", 81)]
