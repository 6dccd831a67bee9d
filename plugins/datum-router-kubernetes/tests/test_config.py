"""Settings as text, and what of the cluster is read by them."""

from __future__ import annotations

import msgspec
import pytest

from datum_router.errors import ConfigError
from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.meta import ObjectKey, ObjectMeta
from datum_router.manifests.secret import ConfigMap, Secret
from datum_router.manifests.table import ResourceKind
from datum_router_kubernetes.collection import REPORT_SELECTOR, Collection, collections_of, named_collection
from datum_router_kubernetes.config import (
    PAGE_SIZE,
    REMOTE_MAX_BYTES,
    REMOTE_MAX_OBJECTS,
    WATCH_IDLE_S,
    ClusterSettings,
    Role,
    read_settings,
)


class Anything(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str
    kind: str
    metadata: ObjectMeta


def kind(group: str, name: str, plural: str, **fields: object) -> ResourceKind:
    made = ResourceKind(group=group, version="v1", kind=name, plural=plural, struct=Anything)
    return msgspec.structs.replace(made, **fields)


SECRETS = ResourceKind(group="", version="v1", kind="Secret", plural="secrets", struct=Secret)
CONFIG_MAPS = ResourceKind(group="", version="v1", kind="ConfigMap", plural="configmaps", struct=ConfigMap)
LEASE = kind("coordination.k8s.io", "Lease", "leases")
NAMESPACE = kind("", "Namespace", "namespaces", namespaced=False, is_metadata_only=True)
PODS = kind("", "Pod", "pods")
SLICES = kind("discovery.k8s.io", "EndpointSlice", "endpointslices")
KINDS = (*OWN_KINDS, SECRETS, CONFIG_MAPS, PODS)


def test_settings_have_defaults() -> None:
    assert read_settings({}) == ClusterSettings()
    assert ClusterSettings().page_size == PAGE_SIZE
    assert ClusterSettings().watch_idle_s == WATCH_IDLE_S


def test_settings_are_read() -> None:
    found = read_settings(
        {
            "kubeconfig": "/a:/b",
            "context": "prod",
            "namespaces": "shop, pay,shop,",
            "labelSelector": "team=a",
            "role": "controller",
            "pageSize": "7",
            "watchIdleSeconds": "1.5",
            "writeQps": "20",
            "writeBurst": "30",
        }
    )
    assert found == ClusterSettings(
        kubeconfig="/a:/b",
        context="prod",
        namespaces=("shop", "pay"),
        label_selector="team=a",
        role=Role.CONTROLLER,
        page_size=7,
        watch_idle_s=1.5,
    )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("kubeConfig", "x", "did you mean kubeconfig?"),
        ("colour", "red", "known settings: kubeconfig"),
        ("role", "boss", "one of gateway, controller, cli, discovery, remote"),
        ("namespaces", "a,B c", "found 'B c'"),
        ("pageSize", "0", "a whole number from 1 to 10000"),
        ("pageSize", "1.5", "a whole number"),
        ("pageSize", "²", "a whole number"),
        ("watchIdleSeconds", "nan", "a number from 0.1 to 3600"),
        ("watchIdleSeconds", "", "a number"),
        ("labelSelector", "a\nb", "kubectl get -l"),
    ],
)
def test_a_wrong_setting_says_what_would_be_right(name: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings({name: value})
    assert str(caught.value).startswith("kubernetes: ")
    assert expected in str(caught.value)


def paths(*kinds: ResourceKind, **settings: object) -> list[str]:
    made = msgspec.structs.replace(ClusterSettings(), **settings)
    return [one.path for one in collections_of(kinds, made, "system")]


def test_all_kinds_are_read_in_the_whole_cluster_but_secrets_and_configmaps() -> None:
    assert paths(*KINDS) == [
        "/apis/router.datum.net/v1alpha1/vpcservices",
        "/apis/router.datum.net/v1alpha1/vpcroutes",
        "/apis/router.datum.net/v1alpha1/servicebindings",
        "/apis/router.datum.net/v1alpha1/vpcingresses",
        "/apis/router.datum.net/v1alpha1/vpcegresses",
        "/api/v1/pods",
    ]


def test_no_role_reads_secrets_other_than_by_name() -> None:
    for role in set(Role) - {Role.DISCOVERY}:
        for namespaces in ((), ("shop",)):
            assert not any(
                "secrets" in path or "configmaps" in path for path in paths(*KINDS, role=role, namespaces=namespaces)
            )


def test_discovery_reads_secrets_of_its_own_namespace_with_a_label_and_its_own_slices() -> None:
    found = collections_of([*KINDS, SLICES], ClusterSettings(role=Role.DISCOVERY), "system")
    assert [(one.path, one.label_selector) for one in found if "router.datum.net/v1" not in one.path] == [
        ("/api/v1/namespaces/system/secrets", "router.datum.net/remote-cluster=true"),
        ("/api/v1/pods", ""),
        (
            "/apis/discovery.k8s.io/v1/endpointslices",
            "endpointslice.kubernetes.io/managed-by=discovery.router.datum.net",
        ),
    ]


def test_some_namespaces_are_read_one_by_one() -> None:
    assert paths(SECRETS, OWN_KINDS[1], namespaces=("shop", "pay")) == [
        "/apis/router.datum.net/v1alpha1/namespaces/shop/vpcroutes",
        "/apis/router.datum.net/v1alpha1/namespaces/pay/vpcroutes",
    ]


def test_namespaces_are_looked_for_by_name_where_only_some_are_read() -> None:
    assert paths(NAMESPACE) == ["/api/v1/namespaces"]
    found = collections_of([NAMESPACE], ClusterSettings(namespaces=("shop",)), "system")
    assert [(one.path, one.name, one.is_optional, one.is_metadata_only) for one in found] == [
        ("/api/v1/namespaces", "shop", True, True)
    ]


def test_only_controllers_read_reports_and_only_those() -> None:
    assert paths(LEASE) == []
    assert paths(LEASE, role=Role.CLI) == []
    found = collections_of([LEASE], ClusterSettings(role=Role.CONTROLLER), "system")
    assert [(one.path, one.label_selector) for one in found] == [
        ("/apis/coordination.k8s.io/v1/namespaces/system/leases", REPORT_SELECTOR)
    ]


def test_labels_select_among_our_own_kinds() -> None:
    found = collections_of(KINDS, ClusterSettings(label_selector="team=a"), "system")
    assert {one.kind for one in found if one.label_selector} == {kind.kind for kind in OWN_KINDS}


def test_a_kind_of_two_versions_is_read_once() -> None:
    assert paths(kind("x.test", "Thing", "things"), kind("x.test", "Thing", "things", version="v2")) == [
        "/apis/x.test/v1/things"
    ]


def test_queries() -> None:
    one = Collection(kind="A", api_version="v1", path="/api/v1/as", resource="as", label_selector="a=b")
    assert one.list_query("", 500) == {"labelSelector": "a=b", "limit": "500"}
    assert one.list_query("t", 0) == {"labelSelector": "a=b", "continue": "t"}
    assert one.watch_query("7", 300) == {
        "labelSelector": "a=b",
        "watch": "1",
        "allowWatchBookmarks": "true",
        "resourceVersion": "7",
        "timeoutSeconds": "300",
    }
    assert one.list_accept == one.watch_accept == "application/json"
    partial = msgspec.structs.replace(one, is_metadata_only=True)
    assert partial.list_accept.startswith("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")
    assert partial.watch_accept.startswith("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1")


def test_one_object_is_read_by_a_field_selector_that_a_right_by_name_allows() -> None:
    one = named_collection(SECRETS, ObjectKey(kind="Secret", namespace="shop", name="tls"))
    assert one.path == "/api/v1/namespaces/shop/secrets"
    assert one.list_query("", 500)["fieldSelector"] == "metadata.name=tls"
    assert one.is_optional


def test_what_is_held_is_bounded_for_clusters_of_somebody_else_alone() -> None:
    remote = read_settings({"role": "remote"})
    assert (remote.max_objects, remote.max_bytes) == (REMOTE_MAX_OBJECTS, REMOTE_MAX_BYTES)
    for role in ("gateway", "controller", "cli", "discovery"):
        found = read_settings({"role": role})
        assert (found.max_objects, found.max_bytes) == (0, 0)
    set_so = read_settings({"role": "remote", "maxObjects": "7", "maxBytes": "0"})
    assert (set_so.max_objects, set_so.max_bytes) == (7, 0)
    with pytest.raises(ConfigError, match="setting maxBytes: found '-1', expected a whole number"):
        read_settings({"maxBytes": "-1"})


@pytest.mark.parametrize("role", ["discovery", "remote"])
def test_discovery_reads_of_namespaces_the_one_that_says_which_cluster_it_is(role: str) -> None:
    for settings in (ClusterSettings(role=Role(role)), ClusterSettings(role=Role(role), namespaces=("shop",))):
        (found,) = collections_of([NAMESPACE], settings, "here")
        assert (found.path, found.name, found.is_optional) == ("/api/v1/namespaces", "kube-system", True)
