"""Filters of routes: references to services, settings of plugins' filters, and services that only filters use."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from datum_router.compiler.diagnostics import Severity
from datum_router.compiler.filters import filter_findings
from datum_router.compiler.link import Lease
from datum_router.compiler.linker import Linker
from datum_router.filters.base import apply_request, build_filter
from datum_router.manifests.meta import ObjectKey
from datum_router.model.endpoint import make_endpoint
from datum_router.model.filters import Mirror
from datum_router.model.request import LocalReply, RequestHead
from datum_router.model.route import BackendRef, PluginFilter, Rule, RuleId
from datum_router.model.service import Service, ServiceKey
from datum_router.model.snapshot import SnapshotData
from datum_router.plugins.manager import PluginSet
from datum_router.plugins.specs import FilterSpec, ServiceUse
from datum_router.reasons import Reason
from datum_router.testing.factories import make_head

API, SIDE = ServiceKey("default/api"), ServiceKey("default/side")
KEY = ObjectKey(kind="VPCRoute", namespace="default", name="r")
HEAD = make_head()


def route(*filters: Any, ref: BackendRef = BackendRef(service=API)) -> Rule:
    return Rule(id=RuleId("default/r#0"), route="default/r", destinations=(ref,), filters=filters)


def service(key: ServiceKey, address: str) -> Service:
    return Service(key=key, endpoints=(make_endpoint(address, 80),))


def data(rule: Rule, *services: Service) -> SnapshotData:
    return SnapshotData(version=1, digest="x", rules=(rule,), services={one.key: one for one in services})


@pytest.mark.parametrize("item", [Mirror(service=SIDE), PluginFilter(name="absent", service=SIDE)])
def test_a_service_that_only_a_filter_uses_comes_and_goes(plugins: PluginSet, item: Mirror | PluginFilter) -> None:
    linker = Linker(plugins)
    rule = route(item)
    api, side = service(API, "10.0.0.1"), service(SIDE, "10.0.0.2")

    def ask(snapshot: Any) -> str:
        (linked,) = snapshot.rules.values()
        lease = linked.select_side(SIDE, HEAD, rng=random.Random(1), now=0.0)
        if lease is None:
            return ""
        assert isinstance(lease, Lease)
        lease.release()
        return str(lease.endpoint.address)

    first = linker.link(data(rule, api))
    assert ask(first) == ""
    second = linker.link(data(rule, api, side))
    assert ask(second) == "10.0.0.2"
    assert ask(linker.link(data(rule, api))) == ""
    assert ask(second) == "", "a service that is gone takes nothing, whatever snapshot a request has"


def test_a_service_with_a_problem_is_not_asked(plugins: PluginSet) -> None:
    rule = route(Mirror(service=SIDE, problem="RefNotPermitted"))
    (linked,) = Linker(plugins).link(data(rule, service(API, "10.0.0.1"), service(SIDE, "10.0.0.2"))).rules.values()
    assert linked.select_side(SIDE, HEAD, rng=random.Random(1), now=0.0) is None
    assert linked.select_side(API, HEAD, rng=random.Random(1), now=0.0) is None, "no filter names it"


def test_a_filter_that_nobody_offers_refuses(plugins: PluginSet) -> None:
    (linked,) = Linker(plugins).link(data(route(PluginFilter(name="absent")))).rules.values()
    (item,) = linked.filters
    reply = item.on_request(HEAD)
    assert isinstance(reply, LocalReply)
    assert (reply.status, reply.reason) == (500, Reason.PLUGIN_FAILED)


def check(config: PluginFilter) -> str:
    if config.config == "{}":
        raise ValueError("a secret")
    return "field x: found nothing" if config.config == "[]" else ""


def spec(use: ServiceUse = ServiceUse.OPTIONAL) -> dict[str, FilterSpec]:
    return {"auth": FilterSpec(name="auth", create=lambda _config: pytest.fail("nothing is made"), check=check,
                               service=use)}  # fmt: skip


@pytest.mark.parametrize(
    ("item", "known", "path", "reason", "message"),
    [
        (PluginFilter(name="auht"), spec(), "name", Reason.UNKNOWN_FILTER, "found 'auht', expected one of auth"),
        (PluginFilter(name="auth"), {}, "name", Reason.UNKNOWN_FILTER,
         "found 'auth', expected one of none, since no plugin with filters is installed"),
        (PluginFilter(name="auth", config="[]"), spec(), "config", Reason.INVALID_VALUE, "field x: found nothing"),
        (PluginFilter(name="auth"), spec(), "config", Reason.INVALID_VALUE,
         "the check of filter auth raised ValueError"),
        (PluginFilter(name="auth", config="1"), spec(ServiceUse.REQUIRED), "vpcServiceRef", Reason.MISSING_FIELD,
         "filter auth needs a service to ask"),
        (PluginFilter(name="auth", config="1", service=SIDE), spec(ServiceUse.NONE), "vpcServiceRef",
         Reason.MUTUALLY_EXCLUSIVE, "filter auth asks nobody"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_plugins_filter_is_named(
    item: PluginFilter, known: dict[str, FilterSpec], path: str, reason: Reason, message: str
) -> None:
    (found,) = filter_findings(route(item), KEY, [0], known)
    assert (found.path, found.reason, found.message) == (f"spec.filters[0].plugin.{path}", reason, message)


FULL, PREFIX = "ReplaceFullPath", "ReplacePrefixMatch"


def rewrite(kind: str, text: str) -> dict[str, Any]:
    path = {"type": kind, kind[0].lower() + kind[1:]: text}
    return {"type": "URLRewrite", "urlRewrite": {"path": path, "hostname": "b.test"}}


@pytest.mark.parametrize(
    ("prefix", "of_route", "of_destination", "put"),
    [
        ("/api", rewrite(PREFIX, "/v2"), rewrite(PREFIX, "/v3"), "/v2"),
        ("/api", rewrite(PREFIX, "/"), rewrite(PREFIX, "/v3"), "/"),
        ("/api", rewrite(PREFIX, ""), rewrite(PREFIX, "/v3"), "/"),
        ("/api", rewrite(PREFIX, "/apis"), rewrite(PREFIX, "/v3"), "/apis"),
        ("/api/", rewrite(FULL, "/all"), rewrite(PREFIX, ""), "/all"),
        ("/%61pi", rewrite(FULL, "/ap%69/all"), rewrite(PREFIX, "/v3"), ""),
        ("/api", rewrite(PREFIX, "/api/v2"), rewrite(PREFIX, "/v3"), ""),
        ("/api", rewrite(PREFIX, "/api/"), rewrite(PREFIX, "/v3"), ""),
        ("/", rewrite(FULL, "/all"), rewrite(PREFIX, "/v3"), ""),
        ("/api", rewrite(PREFIX, "/v2"), rewrite(FULL, "/v3"), ""),
        ("/api", {"type": "URLRewrite", "urlRewrite": {"hostname": "a.test"}}, rewrite(PREFIX, "/v3"), ""),
        ("/api", {"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["x-a"]}},
         rewrite(PREFIX, "/v3"), ""),
    ],
)  # fmt: skip
def test_a_prefix_that_the_route_has_replaced_before_the_destination_is_a_warning(
    bench: Callable[..., Any], kit: Any, prefix: str, of_route: Any, of_destination: Any, put: str
) -> None:
    header = {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"remove": ["x-b"]}}
    plain = {"vpcServiceRef": {"name": "my-api"}, "weight": 0}
    api = kit.route(
        "api",
        match={"pathPrefix": prefix},
        filters=[of_route],
        destinations=[plain, {**plain, "weight": 1, "filters": [header, of_destination]}],
    )
    result = bench().compile(kit.service(), api)
    found = [(item.path, item.severity) for item in result.diagnostics]
    assert found == ([("spec.destinations[1].filters[1].urlRewrite.path", Severity.WARNING)] if put else [])
    assert [item for item in result.diagnostics if f"has put {put} there" not in item.message] == []
    (rule,) = result.data.rules
    # What is warned of is true: the destination's filters leave the path where the route's have put it.
    head = make_head(target="/api/x")
    for filters in (rule.filters, rule.destinations[1].filters):
        before = head.path
        made = apply_request(tuple([build_filter(one, rule) for one in filters]), head)
        assert isinstance(made, RequestHead)
        head = made
    assert (head.path == before) == bool(put)


def test_a_copy_across_namespaces_needs_consent(bench: Callable[..., Any], kit: Any) -> None:
    mirror = {
        "type": "RequestMirror",
        "requestMirror": {"vpcServiceRef": {"name": "copy", "namespace": "other"}},
    }
    objects = (kit.service(), kit.service("copy", namespace="other"), kit.route(filters=[mirror]))
    (found,) = bench().compile(*objects).diagnostics
    assert (found.path, found.reason) == ("spec.filters[0].requestMirror.vpcServiceRef.name", Reason.REF_NOT_PERMITTED)
    shared = kit.service("copy", namespace="other", exportTo={"namespaces": "All"})
    result = bench().compile(objects[0], shared, objects[2])
    assert result.diagnostics == ()
    assert result.data.rules[0].filters == (Mirror(service=ServiceKey("other/copy")),)
