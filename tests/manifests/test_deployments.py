"""What runs is confined, and its parts fit each other: ports, selectors, times."""

from __future__ import annotations

from typing import Any

import pytest

from datum_router_runtime.variables import PREFIX, VARIABLES
from tests.manifests.documents import MANIFESTS, NAMESPACE, Document, documents, name_of, of_kind

DEPLOYMENTS = [document for _, document in of_kind("Deployment")]
NAMES = ["router-controller", "router-gateway", "service-discovery"]

each = pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=name_of)


def beside(name: str, kind: str) -> list[Document]:
    """Return the documents of a kind in the file of a Deployment."""
    return [item for item in documents(MANIFESTS / "deployments" / f"{name}.yaml") if item["kind"] == kind]


def container_of(deployment: Document) -> Document:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    found: Document = container
    return found


def ports_of(deployment: Document) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in container_of(deployment)["ports"]}


def environment_of(deployment: Document) -> dict[str, str]:
    return {item["name"]: item.get("value", "") for item in container_of(deployment)["env"]}


def named(name: str) -> Document:
    (found,) = [item for item in DEPLOYMENTS if item["metadata"]["name"] == name]
    return found


def test_there_are_a_controller_a_gateway_and_discovery() -> None:
    assert [item["metadata"]["name"] for item in DEPLOYMENTS] == NAMES


@each
def test_everything_of_a_deployment_is_in_the_namespace(deployment: Document) -> None:
    for document in documents(MANIFESTS / "deployments" / f"{deployment['metadata']['name']}.yaml"):
        assert document["metadata"]["namespace"] == NAMESPACE, name_of(document)


@each
def test_pods_are_unprivileged_and_cannot_write_their_root_file_system(deployment: Document) -> None:
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 10_000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
    assert container_of(deployment)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all(set(volume) == {"name", "emptyDir"} for volume in pod.get("volumes", ()))


@each
def test_resources_are_asked_for_and_memory_is_limited(deployment: Document) -> None:
    resources = container_of(deployment)["resources"]
    assert set(resources["requests"]) == {"cpu", "memory"}
    assert set(resources["limits"]) == {"memory"}


@each
def test_probes_ask_the_listener_of_probes(deployment: Document) -> None:
    container = container_of(deployment)
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": path, "port": "probes"}
    for port in ("probes", "metrics"):
        listen = environment_of(deployment)[f"DATUM_ROUTER_{port.upper()}"]
        assert int(listen.rpartition(":")[2]) == ports_of(deployment)[port]


@each
def test_the_pod_knows_its_name_and_namespace(deployment: Document) -> None:
    fields = {
        item["name"]: item["valueFrom"]["fieldRef"]["fieldPath"]
        for item in container_of(deployment)["env"]
        if "valueFrom" in item
    }
    assert fields.items() >= {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace"}.items()
    assert set(fields.values()) <= {"metadata.name", "metadata.namespace", "metadata.uid"}


@each
def test_every_variable_is_one_that_is_read(deployment: Document) -> None:
    ours = {name for name in environment_of(deployment) if name.startswith(PREFIX)}
    assert len(ours) > 2
    assert ours <= VARIABLES


@each
def test_selectors_select_the_pods(deployment: Document) -> None:
    name = deployment["metadata"]["name"]
    spec, pod = deployment["spec"], deployment["spec"]["template"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    selectors: list[dict[str, Any]] = [spec["selector"]["matchLabels"]]
    selectors += [item["labelSelector"]["matchLabels"] for item in pod["topologySpreadConstraints"]]
    selectors += [item["spec"]["selector"]["matchLabels"] for item in beside(name, "PodDisruptionBudget")]
    selectors += [item["spec"]["podSelector"]["matchLabels"] for item in beside(name, "NetworkPolicy")]
    selectors += [item["spec"]["selector"] for item in beside(name, "Service")]
    assert len(selectors) >= 5
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert selector == {"app.kubernetes.io/name": name}


@each
def test_the_network_policy_lets_in_what_the_pod_offers_and_nothing_else(deployment: Document) -> None:
    (policy,) = beside(deployment["metadata"]["name"], "NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    let_in = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    assert let_in == set(ports_of(deployment))


@each
def test_services_lead_to_ports_that_are_there(deployment: Document) -> None:
    ports = ports_of(deployment)
    for service in beside(deployment["metadata"]["name"], "Service"):
        assert all(port["targetPort"] in ports for port in service["spec"]["ports"]), name_of(service)


@each
def test_a_budget_keeps_all_but_one_replica(deployment: Document) -> None:
    assert deployment["spec"]["replicas"] == 2
    (budget,) = beside(deployment["metadata"]["name"], "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1


def test_a_gateway_has_time_to_drain() -> None:
    gateway = named("router-gateway")
    environment = environment_of(gateway)
    drain_s = sum(float(environment[f"DATUM_ROUTER_{name}_SECS"]) for name in ("LAMEDUCK", "GRACE"))
    assert gateway["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= drain_s + 10
    assert "lifecycle" not in container_of(gateway)


def test_a_gateway_is_replaced_only_after_its_successor_is_ready() -> None:
    assert named("router-gateway")["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_a_gateway_listens_where_its_service_leads_also_without_any_vpcingress() -> None:
    gateway = named("router-gateway")
    environment = environment_of(gateway)
    assert environment["DATUM_ROUTER_BIND"] == "0.0.0.0"
    assert "DATUM_ROUTER_LISTEN" not in environment  # it would take the place of what VPCIngresses ask for
    assert ports_of(gateway)["http"] == 8080
    assert ports_of(gateway)["https"] == 8443


def test_the_snapshot_which_may_hold_keys_is_kept_in_memory() -> None:
    gateway = named("router-gateway")
    (mount,) = container_of(gateway)["volumeMounts"]
    assert environment_of(gateway)["DATUM_ROUTER_SNAPSHOT_FILE"].startswith(mount["mountPath"] + "/")
    (volume,) = gateway["spec"]["template"]["spec"]["volumes"]
    assert volume["name"] == mount["name"]
    assert volume["emptyDir"]["medium"] == "Memory"


def test_the_gateway_cannot_reach_link_local_addresses_but_for_names() -> None:
    (policy,) = beside("router-gateway", "NetworkPolicy")
    names, backends = policy["spec"]["egress"]
    assert {(port["port"], port["protocol"]) for port in names["ports"]} == {(53, "UDP"), (53, "TCP")}
    blocks = {item["ipBlock"]["cidr"]: item["ipBlock"]["except"] for item in backends["to"]}
    assert set(blocks) == {"0.0.0.0/0", "::/0"}
    assert "169.254.0.0/16" in blocks["0.0.0.0/0"]
    assert "fe80::/10" in blocks["::/0"]
