import types
from collections.abc import Callable
from typing import Any

import pytest

from datum_router.compiler.diagnostics import Origin
from datum_router.errors import ConfigError, PluginContractError, PluginLoadError
from datum_router.manifests.decode import decode
from datum_router.manifests.problem import Problem
from datum_router.manifests.secret import Secret
from datum_router.plugins import builtin
from datum_router.plugins.hookspecs import hookimpl
from datum_router.plugins.manager import HOOK_NAMES, SERVING_HOOKS, Candidate, candidate_of, load_plugins
from datum_router.plugins.specs import BalancerSpec, PluginInfo, ValidatorSpec
from datum_router.policy.plugin_guard import PluginHook
from datum_router.reasons import Reason


def module(**hooks: Callable[..., Any]) -> types.ModuleType:
    found = types.ModuleType("plugin")
    for name, function in hooks.items():
        function.__name__ = name
        setattr(found, name, hookimpl(function))
    return found


def nothing() -> list[BalancerSpec]:
    return []


def info(api: int = 1) -> PluginInfo:
    return PluginInfo(name="x", version="1", api=api, stability="alpha", posture="no-traffic")


def candidate(found: object, name: str = "x") -> Candidate:
    return Candidate(entry_point=name, distribution="dist-x", load=lambda: found)


CORE = candidate(builtin, "builtin")
BALANCER = BalancerSpec(name="mine", create=lambda _policy: None)  # type: ignore[arg-type,return-value]


def test_built_ins_register_through_the_hooks() -> None:
    plugins = load_plugins([CORE])
    assert set(plugins.balancers) == {
        "round-robin",
        "least-connections",
        "random",
        "source-ip",
        "consistent-hash",
        "consistent-hash-ring",
    }
    assert {kind.kind for kind in plugins.kinds} >= {"VPCService", "VPCRoute", "Secret"}
    assert plugins.plugins[0].info.name == "builtin"


def test_a_plugins_balancer_is_there_by_name() -> None:
    plugin = module(datum_router_plugin_info=info, datum_router_balancers=lambda: [BALANCER])
    plugins = load_plugins([CORE, candidate(plugin)])
    assert plugins.balancers["mine"] is BALANCER
    assert plugins.authors[PluginHook.BALANCER]["mine"] == "x"
    assert plugins.authors[PluginHook.BALANCER]["round-robin"] == "builtin"


def decoded(plugins: Any, data: dict[str, str]) -> Any:
    raw = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": data}
    return decode(raw, Origin(source="test"), plugins.kinds)


def test_a_plugins_validator_is_asked_after_the_kinds_own_rules() -> None:
    def refuse(manifest: Secret) -> list[Problem]:
        return [Problem(path="stringData", reason=Reason.INVALID_VALUE, message=f"found {manifest.metadata.name}")]

    specs = [
        ValidatorSpec(name="mine", kind="Secret", validate=refuse),
        ValidatorSpec(name="other", kind="NotInstalled", validate=refuse),
    ]
    plugins = load_plugins(
        [CORE, candidate(module(datum_router_plugin_info=info, datum_router_validators=lambda: specs))]
    )
    found = decoded(plugins, {"a": "b"})
    assert found.manifest is None
    assert [(item.object, item.path, item.message) for item in found.diagnostics] == [
        ("secret default/s", "stringData", "found s")
    ]
    own = decoded(plugins, {"tls.crt": "junk"})
    assert [item.path for item in own.diagnostics] == ["stringData['tls.crt']"]


def test_a_validators_failure_is_a_diagnostic() -> None:
    def explode(_manifest: Secret) -> list[Problem]:
        raise ValueError("boom")

    specs = [ValidatorSpec(name="mine", kind="Secret", validate=explode)]
    plugin = module(datum_router_plugin_info=info, datum_router_validators=lambda: specs)
    (found,) = decoded(load_plugins([CORE, candidate(plugin)]), {}).diagnostics
    assert found.reason is Reason.PLUGIN_FAILED
    assert found.message == "the validator of Secret failed: ValueError: 'boom'"


def test_a_wrong_api_version_is_refused_before_anything_else_runs() -> None:
    def explode() -> list[BalancerSpec]:
        raise AssertionError("must not be called")

    plugin = module(datum_router_plugin_info=lambda: info(api=7), datum_router_balancers=explode)
    with pytest.raises(PluginLoadError, match="plugin x: written for plugin API 7, this is API 1"):
        load_plugins([candidate(plugin)])


def test_an_unknown_hook_is_refused_with_the_nearest_name() -> None:
    plugin = module(datum_router_plugin_info=info, datum_router_balancer=nothing)
    with pytest.raises(
        PluginLoadError, match=r"unknown hook datum_router_balancer \(did you mean datum_router_balancers"
    ):
        load_plugins([candidate(plugin)])


def test_a_plugin_must_say_who_it_is() -> None:
    with pytest.raises(PluginLoadError, match="datum_router_plugin_info"):
        load_plugins([candidate(module(datum_router_balancers=nothing))])


def test_a_taken_name_is_refused_and_both_plugins_are_named() -> None:
    taken = BalancerSpec(name="round-robin", create=BALANCER.create)
    plugin = module(datum_router_plugin_info=info, datum_router_balancers=lambda: [taken])
    with pytest.raises(PluginLoadError, match="plugin x: balancer 'round-robin' is already taken by plugin builtin"):
        load_plugins([CORE, candidate(plugin)])


@pytest.mark.parametrize("answer", [None, "text", [1]])
def test_a_wrong_return_type_is_refused(answer: object) -> None:
    plugin = module(datum_router_plugin_info=info, datum_router_balancers=lambda: answer)
    if answer is None:
        assert not load_plugins([candidate(plugin)]).balancers  # pluggy reads None as no answer
        return
    with pytest.raises(PluginContractError, match="plugin x: datum_router_balancers"):
        load_plugins([candidate(plugin)])


def test_a_plugin_that_cannot_be_imported_is_named_with_its_distribution() -> None:
    def broken() -> object:
        raise ImportError("no module named nothing")

    with pytest.raises(PluginLoadError, match="plugin y: cannot be imported from distribution dist-y: ImportError"):
        load_plugins([Candidate(entry_point="y", distribution="dist-y", load=broken)])


def test_a_hook_that_raises_is_named() -> None:
    def broken() -> list[BalancerSpec]:
        raise ValueError("boom")

    plugin = module(datum_router_plugin_info=info, datum_router_balancers=broken)
    with pytest.raises(PluginLoadError, match=r"plugin x: datum_router_balancers\(\) raised ValueError: boom"):
        load_plugins([candidate(plugin)])


def test_disabled_plugins_are_left_out() -> None:
    plugin = module(datum_router_plugin_info=info, datum_router_balancers=lambda: [BALANCER])
    plugins = load_plugins([CORE, candidate(plugin)], disabled=frozenset({"x"}))
    assert [item.entry_point for item in plugins.plugins] == ["builtin"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kuberntes", "found 'kuberntes', which is not installed; expected some of files, kubernetes (did you mean"),
        ("builtin", "found 'builtin', which cannot be disabled; expected some of files, kubernetes"),
    ],
)
def test_what_cannot_be_left_out_is_told_with_what_could(name: str, message: str) -> None:
    plugin = module(datum_router_plugin_info=info)
    others = [Candidate(entry_point=known, distribution="", load=lambda: plugin) for known in ("kubernetes", "files")]
    with pytest.raises(ConfigError) as caught:
        load_plugins([CORE, *others], disabled=frozenset({"files", name}))
    assert message in str(caught.value)


def test_tracing_names_every_hook_call() -> None:
    lines: list[str] = []
    plugin = module(datum_router_plugin_info=info, datum_router_balancers=lambda: [BALANCER])
    load_plugins([candidate(plugin)], trace=lines.append)
    assert lines == ["plugin x: calling datum_router_plugin_info()", "plugin x: calling datum_router_balancers()"]


def test_only_the_hooks_that_are_asked_for_are_called() -> None:
    def explode() -> list[BalancerSpec]:
        raise AssertionError("must not be called")

    plugin = module(
        datum_router_plugin_info=info, datum_router_balancers=lambda: [BALANCER], datum_router_resource_kinds=explode
    )
    plugins = load_plugins([candidate(plugin)], hooks=SERVING_HOOKS)
    assert list(plugins.balancers) == ["mine"]
    assert not len(plugins.kinds)
    assert plugins.plugins[0].hooks == (
        "datum_router_plugin_info",
        "datum_router_balancers",
        "datum_router_resource_kinds",
    )


def test_hooks_of_serving_are_hooks() -> None:
    assert set(HOOK_NAMES) >= SERVING_HOOKS


def test_a_plugin_can_be_loaded_again_by_what_is_known_of_it() -> None:
    first = load_plugins()
    again = load_plugins(
        [candidate_of(plugin.entry_point, plugin.distribution, plugin.target) for plugin in first.plugins]
    )
    assert again.plugins == first.plugins
    assert again.data_planes.keys() == first.data_planes.keys()


def test_a_target_may_name_an_attribute_of_a_module() -> None:
    assert candidate_of("x", "dist-x", "datum_router.plugins:builtin").load() is builtin


def test_a_target_that_is_gone_is_named_with_its_plugin() -> None:
    with pytest.raises(PluginLoadError, match="plugin x: cannot be imported from distribution dist-x"):
        load_plugins([candidate_of("x", "dist-x", "datum_router.no_such_module")])
