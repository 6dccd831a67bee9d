"""`datum-router explain`: winner, losers and why, destinations."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from datum_router.errors import ConfigError
from datum_router.model.listener import Listener, TlsBinding
from datum_router.model.request import RequestHead
from datum_router.policy.shedding import TARGET_S, describe_shedding
from datum_router_cli import authority
from datum_router_cli.certs import secret_manifest
from datum_router_cli.commands import cli
from datum_router_cli.explain import MAX_SHOWN_LOSERS
from datum_router_cli.listener import choose_listener
from datum_router_cli.request import make_request

Invoke = Callable[..., Result]

MANIFESTS = """\
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata:
  name: my-api
spec:
  port: 8080
  topology: {topology.datum.net/city-code: IAD}
  endpoints:
    - address: 10.0.0.1
    - {address: "fd00::1", priority: 1}
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata:
  name: api-routes
spec:
  match:
    pathPrefix: /api/v1
    methods: [GET, POST]
  destinations:
    - vpcServiceRef: {name: my-api}
      weight: 75
    - vpcServiceRef: {name: elsewhere}
      weight: 25
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata:
  name: wide
spec:
  match:
    pathPrefix: /api
  destinations:
    - vpcServiceRef: {name: my-api}
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata:
  name: canary
spec:
  hostnames: [shop.example.com]
  match:
    pathPrefix: /api/v1
    headers: {X-Canary: always}
  destinations:
    - vpcServiceRef: {name: my-api}
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata:
  name: moved
spec:
  match:
    pathPrefix: /old
  filters:
    - type: RequestRedirect
      requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}, statusCode: 301}
"""


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "all.yaml").write_text(MANIFESTS)
    return lambda *arguments: CliRunner().invoke(cli, ["explain", "conf", *arguments], prog_name="datum-router")


def test_text_names_winner_destinations_and_why_each_other_rule_lost(invoke: Invoke) -> None:
    result = invoke("GET", "http://localhost/api/v1/users?x=1")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "GET http://localhost/api/v1/users?x=1 from 127.0.0.1 at listener plain-127.0.0.1-8080",
        f"listener: {describe_shedding(TARGET_S)}",
        "winner: default/api-routes#0 (conf/all.yaml:12)",
        '    path prefix "/api/v1"',
        "    method GET or POST",
        "destinations (round-robin):",
        "    75% default/my-api (weight 75, priority 0, HTTP)",
        "        10.0.0.1:8080 (weight 100, priority 0, topology.datum.net/city-code=IAD, from static)",
        "        [fd00::1]:8080 (weight 100, priority 1, topology.datum.net/city-code=IAD, from static)",
        "        probes: none",
        "        ejection: after 5 gateway errors in a row for 10 s, twice as long each time, up to 300 s; at most 50% "
        "of the endpoints at once, or one; back in by trials, 1 at once",
        "        panic: health is ignored if less than 50% of the endpoints are usable and those cannot take all "
        "requests",
        "        connections: made within 10 s, kept without requests for 60 s",
        "    25% default/elsewhere (weight 25, priority 0): VPCServiceNotFound",
        "retries: up to 1 on connect-failure, reset, refused-stream",
        "    after a random wait of up to 0.1 s, twice as long each time, up to 10 s",
        "    as long as retries in flight are at most 20% of first tries, or 3",
        "    what may have been processed is repeated: GET is idempotent",
        "    an endpoint that cannot be reached is followed by up to 4 others",
        "timeouts: request 30 s",
        "lost:",
        "    default/wide#0 (conf/all.yaml:26)",
        "        lost to default/api-routes#0 because its path prefix is longer (7 characters against 4)",
        "    default/moved#0 (conf/all.yaml:48)",
        '        path: expected prefix "/old", found /api/v1/users',
        "    default/canary#0 (conf/all.yaml:36)",
        "        hostname: expected shop.example.com, found localhost",
    ]


def test_headers_and_host_count(invoke: Invoke) -> None:
    result = invoke("GET", "http://127.0.0.1/api/v1", "-H", "Host: shop.example.com", "-H", "x-canary: always")
    assert "winner: default/canary#0" in result.stdout
    assert "lost to default/canary#0 because an exact hostname precedes no hostname" in result.stdout


def test_no_rule_is_an_answer_not_an_error(invoke: Invoke) -> None:
    result = invoke("GET", "http://localhost/nothing")
    assert result.exit_code == 0
    assert "no route: 404" in result.stdout.splitlines()


def test_redirect_is_answered_by_the_router(invoke: Invoke) -> None:
    result = invoke("GET", "http://localhost/old/page")
    assert "winner: default/moved#0" in result.stdout
    assert "    redirect 301: prefix /new" in result.stdout
    assert "answered by the router: 301" in result.stdout


def test_json_holds_the_same(invoke: Invoke) -> None:
    result = invoke("POST", "http://localhost/api/v1/users", "--output", "json", "--source-ip", "fd00::9")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert set(document) == {
        "request", "client_certificate", "outcome", "status", "winner", "destinations", "policy", "losers",
        "diagnostics", "at_listener",
        "left_out_filter_services",
    }  # fmt: skip
    assert document["policy"] == {
        "max_retries": 1,
        "retry_on": ["connect-failure", "reset", "refused-stream"],
        "repeats": "never",
        "why": "POST is not idempotent, and retryNonIdempotent is false",
        "budget_percent": 20,
        "backoff_s": [0.1, 10.0],
        "hedge_delay_s": None,
        "hedge_attempts": 1,
        "spares_sessions": False,
        "request_s": 30.0,
        "connect_s": None,
        "per_try_s": None,
        "backend_request_s": None,
        "stream_idle_s": None,
        "is_deadline_propagated": False,
    }
    assert document["request"] == {
        "method": "POST",
        "scheme": "http",
        "host": "localhost",
        "path": "/api/v1/users",
        "query": None,
        "source_ip": "fd00::9",
        "listener": "plain-127.0.0.1-8080",
        "attachment": "",
    }
    assert (document["outcome"], document["status"]) == ("routed", None)
    assert document["winner"] == {
        "rule": "default/api-routes#0",
        "route": "default/api-routes",
        "file": "conf/all.yaml",
        "line": 12,
        "conditions": ['path prefix "/api/v1"', "method GET or POST"],
        "filters": [],
        "limits": [],
        "balancing": "round-robin",
    }
    assert [(item["service"], item["share_percent"]) for item in document["destinations"]] == [
        ("default/my-api", 75.0),
        ("default/elsewhere", 25.0),
    ]
    there, nowhere = document["destinations"]
    assert (there["health"][0], there["connect_s"], there["idle_s"]) == ("probes: none", 10.0, 60.0)
    assert (nowhere["health"], nowhere["connect_s"], nowhere["idle_s"]) == ([], None, None)
    assert document["at_listener"] == [describe_shedding(TARGET_S)]
    losers = {item["rule"]: item for item in document["losers"]}
    moved, wide = losers["default/moved#0"], losers["default/wide#0"]
    assert (moved["matches"], moved["failed"]) == (False, "path")
    assert (moved["expected"], moved["found"]) == ('prefix "/old"', "/api/v1/users")
    assert wide["matches"] is True
    assert wide["lost_because"].startswith("lost to default/api-routes#0 because its path prefix is longer")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("get", "http://localhost/"), "methods are case-sensitive (did you mean GET?)"),
        (("GET", "localhost/"), "URL: found 'localhost/', expected http://HOST[:PORT]/PATH"),
        (("CONNECT", "shop.example.com:443"), "routes do not know it: expected --egress too"),
        (("GET", "http://localhost/a/%2e%2e/../.."), "would be answered with 400"),
        (("GET", "http://localhost/", "--listener", "plain"), "there is plain-127.0.0.1-8080 (port 8080)"),
        (("GET", "http://localhost/", "--listener", "9"), "--listener: found '9', expected the name or port of"),
    ],
)
def test_what_is_no_request_is_bad_input(invoke: Invoke, arguments: tuple[str, ...], message: str) -> None:
    text, as_json = invoke(*arguments), invoke(*arguments, "--output", "json")
    assert (text.exit_code, as_json.exit_code) == (2, 2)
    assert message in text.stderr
    assert message in json.loads(as_json.stdout)["error"]["message"]


def test_errors_of_the_directory_are_said_first(invoke: Invoke) -> None:
    Path("conf/bad.yaml").write_text("kind: [1")
    result = invoke("GET", "http://localhost/api/v1")
    assert result.exit_code == 0
    assert result.stdout.startswith("conf/bad.yaml:2: error: ")


def test_long_lists_of_losers_are_cut_in_text_only(invoke: Invoke) -> None:
    route = "apiVersion: router.datum.net/v1alpha1\nkind: VPCRoute\nmetadata: {name: r%d}\nspec:\n"
    route += "  match: {exactPath: /r%d}\n  destinations: [{vpcServiceRef: {name: my-api}}]\n"
    count = MAX_SHOWN_LOSERS + 10
    Path("conf/many.yaml").write_text("---\n".join(route % (n, n) for n in range(count)))
    text = invoke("GET", "http://localhost/api/v1").stdout
    assert text.splitlines()[-1] == "    and 13 rules more: see --output json"
    document = json.loads(invoke("GET", "http://localhost/api/v1", "--output", "json").stdout)
    assert len(document["losers"]) == count + 3


def test_near_misses_come_before_rules_of_other_paths_and_hosts(invoke: Invoke) -> None:
    losers = json.loads(invoke("PUT", "http://localhost/api/v1", "--output", "json").stdout)["losers"]
    assert [item["failed"] for item in losers] == ["method", "path", "hostname"]


PRIORITIES = """\
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata: {name: ledger}
spec:
  port: 80
  endpoints: [{address: 10.2.0.1}, {address: 10.2.0.2}, {address: 10.2.0.3, priority: 1}]
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata: {name: ledger}
spec:
  match: {pathPrefix: /ledger}
  destinations:
    - vpcServiceRef: {name: ledger}
    - {vpcServiceRef: {name: my-api}, priority: 1}
"""


@pytest.mark.parametrize(
    ("down", "lines"),
    [
        ((), []),
        (("10.2.0.1",), ["70% priority 0 (1 of 2 usable)", "30% priority 1 (1 of 1 usable)"]),
        (("10.2.0.1", "10.2.0.2"), ["0% priority 0 (0 of 2 usable)", "100% priority 1 (1 of 1 usable)"]),
    ],
)
def test_endpoints_that_are_down_show_without_places_too(
    invoke: Invoke, down: tuple[str, ...], lines: list[str]
) -> None:
    Path("conf/ledger.yaml").write_text(PRIORITIES)
    arguments = [text for address in down for text in ("--down", address)]
    said = [line.strip() for line in invoke("GET", "http://localhost/ledger", *arguments).stdout.splitlines()]
    assert [line for line in said if "usable)" in line] == lines
    assert ("with the endpoints that are supposed to be down:" in said) is bool(down)
    assert "the lowest priority with a usable endpoint takes all; shares are within a priority" in said


def test_what_holds_for_two_destinations_alike_is_told_once(invoke: Invoke) -> None:
    Path("conf/ledger.yaml").write_text(PRIORITIES)
    lines = [line.strip() for line in invoke("GET", "http://localhost/ledger").stdout.splitlines()]
    assert lines.count("probes: none") == 1
    assert lines.count("probes, ejection, panic and connections: as of default/ledger") == 1
    Path("conf/ledger.yaml").write_text(PRIORITIES.replace("port: 80\n", "port: 80\n  healthCheck: {}\n"))
    lines = [line.strip() for line in invoke("GET", "http://localhost/ledger").stdout.splitlines()]
    assert [line.split(" ")[1] for line in lines if line.startswith("probes")] == ["HTTP", "none"]


def test_what_keeps_routes_away_is_said_if_no_other_takes_the_request(invoke: Invoke) -> None:
    ingress = (
        "apiVersion: router.datum.net/v1alpha1\nkind: VPCIngress\nmetadata: {name: shop, namespace: edge}\nspec:\n"
    )
    ingress += "  host: shop.example.com\n  allowedRoutes: {namespaces: Same}\n"
    ingress += "  listeners: [{name: http, port: 8080, protocol: HTTP}]\n"
    Path("conf/ingress.yaml").write_text(ingress)
    result = invoke("GET", "http://shop.example.com:8080/api/v1")
    assert "vpcroute default/api-routes: spec.parentRefs: not served on http-8080" in result.stdout
    assert "no route: 404" in result.stdout


def head_for(url: str) -> RequestHead:
    return make_request("GET", url)


def test_listener_is_chosen_by_scheme_then_port_then_host() -> None:
    binding = TlsBinding(hostnames=("a.example",))
    plain = Listener(name="plain", port=8080)
    other = Listener(name="other", port=80, hostnames=("b.example",))
    secure = Listener(name="secure", port=8443, tls=(binding,))
    listeners = (plain, other, secure)
    assert choose_listener(listeners, head_for("http://h:8080/"), None) is plain
    assert choose_listener(listeners, head_for("http://h/"), None) is other
    assert choose_listener(listeners, head_for("http://h:9/"), None) is plain
    assert choose_listener(listeners, head_for("https://h/"), None) is secure
    assert choose_listener(listeners, head_for("http://[::1]:8080/"), None) is plain
    assert choose_listener(listeners, head_for("http://h/"), "secure") is secure
    assert choose_listener(listeners, head_for("http://h/"), "8443") is secure
    assert choose_listener((), head_for("http://h/"), None) is None


def test_listener_of_an_ingress_is_found_by_the_port_that_its_manifest_says(invoke: Invoke) -> None:
    ingress = "apiVersion: router.datum.net/v1alpha1\nkind: VPCIngress\nmetadata: {name: shop}\nspec:\n"
    ingress += "  host: shop.example.com\n  listeners: [{name: http, port: 18080, protocol: HTTP}]\n"
    Path("conf/ingress.yaml").write_text(ingress)
    result = invoke("GET", "http://shop.example.com/api/v1", "--listener", "18080")
    assert result.exit_code == 0, result.output
    assert "at listener http-18080" in result.stdout.splitlines()[0]
    result = invoke("GET", "http://localhost/api/v1", "--listener", "18080")
    assert "(listener http-18080 does not serve host localhost, it serves shop.example.com)" in result.stdout


def test_a_gateway_that_is_told_where_to_listen_serves_all_routes_there(invoke: Invoke) -> None:
    ingress = "apiVersion: router.datum.net/v1alpha1\nkind: VPCIngress\nmetadata: {name: shop}\nspec:\n"
    ingress += "  host: shop.example.com\n  listeners: [{name: http, port: 8080, protocol: HTTP}]\n"
    Path("conf/ingress.yaml").write_text(ingress)
    assert "no route: 404" in invoke("GET", "http://localhost:8080/api/v1").stdout
    result = invoke("GET", "http://localhost:8080/api/v1", "--listen", ":8080")
    assert result.stdout.splitlines()[0].endswith("at listener plain-0.0.0.0-8080")
    assert "winner: default/api-routes#0" in result.stdout
    result = invoke("GET", "http://localhost:8080/api/v1", "--listen", "8080")
    assert (result.exit_code, "--listen: found '8080', expected HOST:PORT" in result.stderr) == (2, True)


def test_unknown_listener_is_answered_with_all_that_are_there() -> None:
    listeners = (Listener(name="http-80", port=80), Listener(name="https-443", port=443))
    with pytest.raises(ConfigError) as caught:
        choose_listener(listeners, head_for("http://h/"), "https-44")
    assert str(caught.value) == (
        "--listener: found 'https-44', expected the name or port of a listener; there are http-80 (port 80), "
        "https-443 (port 443) (did you mean https-443?)"
    )


PLACES = """\
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata: {name: near}
spec:
  port: 80
  topology: {topology.datum.net/city-code: IAD}
  endpoints: [{address: 10.1.0.1}, {address: 10.1.0.2}]
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata: {name: places}
spec:
  match: {pathPrefix: /places}
  destinations: [{vpcServiceRef: {name: near}}]
  locality: {mode: Nearest, allowedLocations: [IAD]}
"""


def test_places_are_shown_as_a_gateway_sees_them(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "conf" / "places.yaml").write_text(PLACES)
    at = "topology.datum.net/city-code=IAD"
    result = invoke("GET", "http://localhost/places", "--at", at, "--down", "10.1.0.2")
    assert "destinations (round-robin, Nearest by topology.datum.net/city-code, only in IAD):" in result.stdout
    assert "places, as a gateway at IAD sees them:" in result.stdout
    assert "100% IAD, same city (priority 0, 1 of 2 usable, capacity 71.43%)" in result.stdout
    document = json.loads(invoke("GET", "http://localhost/places", "--output", "json").stdout)
    locality = document["destinations"][0]["locality"]
    assert (locality["gateway"], locality["places"][0]["basis"]) == ("", "unknown")
    assert locality["places"][0]["usable"] == ["10.1.0.1:80", "10.1.0.2:80"]


def test_copies_that_may_go_nowhere_are_told(invoke: Invoke, tmp_path: Path) -> None:
    mirror = "  filters: [{type: RequestMirror, requestMirror: {vpcServiceRef: {name: near}}}]\n"
    elsewhere = "topology: {topology.datum.net/city-code: FRA}"
    far = (
        PLACES.partition("---")[0]
        .replace("near", "far")
        .replace("topology: {topology.datum.net/city-code: IAD}", elsewhere)
    )
    places = PLACES + mirror.replace("near", "far")
    (tmp_path / "conf" / "places.yaml").write_text(f"{far}---\n{places}")
    said = "default/far gets nothing of its filters: no endpoint of it at a place that the route allows"
    assert said in invoke("GET", "http://localhost/places").stdout
    document = json.loads(invoke("GET", "http://localhost/places", "--output", "json").stdout)
    assert document["left_out_filter_services"] == [said]
    (tmp_path / "conf" / "places.yaml").write_text(PLACES + mirror)
    assert "gets nothing" not in invoke("GET", "http://localhost/places").stdout


ATTACHED = """\
apiVersion: galactic.datumapis.com/v1alpha
kind: VPCAttachment
metadata: {name: %s, labels: {app: x}}
spec: {vpc: {name: %s, namespace: default}, interface: {name: galactic0, addresses: [10.1.0.1/24]}}
status: {ready: true}
---
"""


def test_equal_addresses_of_two_vpcs_are_told_apart(invoke: Invoke, tmp_path: Path) -> None:
    attached = ATTACHED % ("a", "blue") + ATTACHED % ("b", "green")
    selected = PLACES.replace(
        "endpoints: [{address: 10.1.0.1}, {address: 10.1.0.2}]", "vpcAttachmentSelector: {matchLabels: {app: x}}"
    )
    (tmp_path / "conf" / "places.yaml").write_text(attached + selected)
    shown = invoke("GET", "http://localhost/places", "--down", "10.1.0.1:80@default/green").stdout
    assert "10.1.0.1:80 in vpc default/blue (weight 100" in shown
    assert "10.1.0.1:80 in vpc default/green (weight 100" in shown
    assert "1 of 2 usable" in shown
    assert "0 of 2 usable" in invoke("GET", "http://localhost/places", "--down", "10.1.0.1").stdout


def test_an_endpoint_that_is_none_is_not_taken_to_be_down(invoke: Invoke) -> None:
    result = invoke("GET", "http://localhost/api/v1", "--down", "192.0.2.99")
    assert result.exit_code == 2
    assert "--down: found 192.0.2.99, expected an endpoint of a service in conf" in result.stderr


def test_the_place_comes_from_the_settings_of_the_gateway(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf" / "places.yaml").write_text(PLACES.replace("[IAD]", "[LHR]"))
    monkeypatch.setenv("DATUM_ROUTER_LOCATION", "name=fra-1")
    result = invoke("GET", "http://localhost/places")
    assert "places, as a gateway at fra-1 sees them:" in result.stdout
    assert "left out: 10.1.0.1:80 at IAD: allowedLocations: expected LHR, found IAD" in result.stdout
    assert "answered with 503: locality_required" in result.stdout


def test_a_place_that_is_none_is_refused(invoke: Invoke) -> None:
    result = invoke("GET", "http://localhost/", "--at", "latitude=99,longitude=0")
    assert result.exit_code == 2
    assert "--at: found latitude '99', expected degrees from -90 to 90" in result.stderr


LIMITED = """\
apiVersion: router.datum.net/v1alpha1
kind: VPCIngress
metadata: {name: front}
spec:
  host: shop.test
  rateLimit: {requests: 50, keys: [SourceIP]}
---
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata: {name: a}
spec: {port: 80, endpoints: [{address: 10.0.0.1}]}
---
apiVersion: router.datum.net/v1alpha1
kind: VPCRoute
metadata: {name: a}
spec:
  hostnames: [shop.test, other.test]
  destinations: [{vpcServiceRef: {name: a}}]
  rateLimit: {requests: 100, unit: Minute, burst: 20, keys: ["Header:X-Tenant"]}
"""


def test_limits_that_hold_for_the_request_are_shown(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "conf" / "limits.yaml").write_text(LIMITED)
    own = "rate limit of the route: 100 a minute for each value of x-tenant, 20 at once; else 429"
    front = "rate limit of the ingress: 50 a second for each client address, 50 at once; else 429"
    text = invoke("GET", "http://shop.test:8080/").stdout
    assert text.index(front) < text.index(own)
    document = json.loads(invoke("GET", "http://shop.test:8080/", "--output", "json").stdout)
    assert document["winner"]["limits"] == [front, own]


# --- outbound traffic -----------------------------------------------------------------------------------------------


EGRESS = """\
apiVersion: router.datum.net/v1alpha1
kind: VPCEgress
metadata: {name: api}
spec:
  sourceVpcAttachment: prod-vpc
  match:
    hostnames: [api.example.com]
    protocols: [HTTPS]
---
apiVersion: router.datum.net/v1alpha1
kind: VPCEgress
metadata: {name: no-partner}
spec:
  match: {hostnames: ["*.partner.example"]}
  policy: Deny
  priority: 10
"""


@pytest.fixture
def egress(invoke: Invoke, tmp_path: Path) -> Callable[..., Result]:
    (tmp_path / "conf" / "egress.yaml").write_text(EGRESS)
    return lambda *arguments: invoke("--egress", *arguments)


FROM = ("--from", "default/prod-vpc")


def test_egress_says_the_verdict_and_what_each_rule_says(egress: Callable[..., Result]) -> None:
    result = egress(*FROM, "CONNECT", "api.example.com:443", "--address", "93.184.216.34")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[:2] == ["api.example.com:443 from default/prod-vpc", "allow: allowed_by_rule by vpcegress default/api"]
    assert "  may be dialled: 93.184.216.34" in lines
    assert any(line.startswith("  holds   Allow default/api") for line in lines)
    assert any(line.startswith("  no      Deny default/no-partner") and "hostnames" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*FROM, "CONNECT", "api.example.com:443"), "depends on the addresses of the name"),
        ((*FROM, "CONNECT", "api.example.com:443", "--address", "10.0.0.1"), "deny: closed_address"),
        ((*FROM, "TLS", "api.example.com", "--address", "1.1.1.1"), "allow: allowed_by_rule"),
        ((*FROM, "GET", "http://api.example.com/"), "deny: denied_by_default"),
        (("--from", "default/", "CONNECT", "a.partner.example:443"), "deny: denied_by_rule"),
        (("--from", "other/", "CONNECT", "a.example:443"), "deny: no_policy"),
        (("CONNECT", "a.example:443"), "deny: unknown_source"),
        (("CONNECT", "a.example:443"), "  --from says it here, `run --egress-source`"),
    ],
)
def test_egress_says_why(egress: Callable[..., Result], arguments: tuple[str, ...], said: str) -> None:
    result = egress(*arguments)
    assert result.exit_code == 0
    assert said in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("CONNECT", "0177.0.0.1:80"), "bad_destination"),
        (("CONNECT", "a.example"), "no port"),
        (("GET", "https://a.example/"), "or CONNECT HOST:PORT"),
        (("GET", "http://u@a.example/"), "user information"),
        (("GET", "http://a.example/%00"), "400"),
        (("CONNECT", "a.example:443", "--address", "x"), "--address"),
    ],
)
def test_what_is_no_destination_is_exit_2(egress: Callable[..., Result], arguments: tuple[str, ...], said: str) -> None:
    result = egress(*FROM, *arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_egress_for_machines(egress: Callable[..., Result]) -> None:
    result = egress(*FROM, "CONNECT", "api.example.com:443", "--address", "93.184.216.34", "--output", "json")
    document = json.loads(result.output)
    assert (document["verdict"], document["reason"], document["egress"]) == ("allow", "allowed_by_rule", "default/api")
    assert document["mustBeTls"] is True
    assert [one["holds"] for one in document["rules"]] == ["no", "yes"]


TERMS = """\
apiVersion: router.datum.net/v1alpha1
kind: VPCEgress
metadata: {name: terms}
spec:
  sourceVpcAttachment: terms-vpc
  match: {destinationCidrs: [0.0.0.0/0]}
  destinations:
  - {endpoint: tls.example, port: 80, tls: {enabled: true, sni: real.example}}
  - {endpoint: own.example, port: 80, tls: {enabled: true, clientCertificateSecretName: gone}}
  - {endpoint: any.example, port: 80, tls: {enabled: true, insecure: true}}
  - {endpoint: plain.example, port: 80}
  - {endpoint: plain.example, port: 443}
  rateLimit: {requestsPerSecond: 5, burstSize: 9}
  timeouts: {request: 7s, connect: 2s, streamIdle: 1m}
  retries: {maxRetries: 3, retryOnStatus: [503]}
---
apiVersion: router.datum.net/v1alpha1
kind: VPCEgress
metadata: {name: bare}
spec:
  sourceVpcAttachment: bare-vpc
  match: {destinationCidrs: [0.0.0.0/0]}
  retries: {maxRetries: 0}
"""
RATE = "rate limit: 5 a second and 9 at once, in each worker; 429 beyond it"


@pytest.mark.parametrize(
    ("vpc", "asked", "said"),
    [
        (
            "terms",
            ("CONNECT", "plain.example:443"),
            [RATE, "retries: up to 3 of its other addresses are dialled", "timeouts: connect 2 s, silence 60 s"],
        ),
        (
            "bare",
            ("CONNECT", "a.example:443"),
            ["rate limit: none", "retries: none", "timeouts: those of the data plane"],
        ),
        (
            "terms",
            ("GET", "http://plain.example/"),
            [RATE, "timeouts: request 7 s, connect 2 s", "sent on by plain HTTP"],
        ),
        ("terms", ("GET", "http://tls.example/"), ["sent on by TLS, verified as real.example"]),
        ("terms", ("GET", "http://any.example/"), ["sent on by TLS, NOT VERIFIED"]),
        (
            "terms",
            ("GET", "http://own.example/"),
            ["sent on by TLS that cannot be made: a certificate is not there (502)"],
        ),
        ("bare", ("GET", "http://a.example/"), ["rate limit: none", "retries: none (maxRetries is 0)"]),
    ],
)
def test_egress_says_what_holds_for_what_is_let_through(
    egress: Callable[..., Result], tmp_path: Path, vpc: str, asked: tuple[str, ...], said: list[str]
) -> None:
    (tmp_path / "conf" / "terms.yaml").write_text(TERMS)
    lines = [
        line.strip()
        for line in egress("--from", f"default/{vpc}-vpc", *asked, "--address", "1.1.1.1").stdout.splitlines()
    ]
    assert set(said) <= set(lines), lines


def test_egress_says_for_machines_what_holds(egress: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "conf" / "terms.yaml").write_text(TERMS)

    def terms(*arguments: str) -> object:
        asked = egress("--from", "default/terms-vpc", *arguments, "--address", "1.1.1.1", "--output", "json")
        return json.loads(asked.stdout)["terms"]

    limit = {"requestsPerSecond": 5.0, "burstSize": 9}
    request = terms("GET", "http://tls.example/")
    assert request == {
        "rateLimit": limit,
        "maxRetries": 3,
        "retryOn": ["connect-failure", "reset", "refused-stream", "status 503"],
        "timeouts": {"request": 7.0, "connect": 2.0, "streamIdle": None},
        "tls": "TLS, verified as real.example",
    }
    assert terms("CONNECT", "plain.example:443") == {
        "rateLimit": limit,
        "maxRetries": 3,
        "retryOn": [],
        "timeouts": {"request": None, "connect": 2.0, "streamIdle": 60.0},
        "tls": "",
    }
    assert terms("CONNECT", "plain.example:444") is None, "what is denied has no terms"


def test_from_needs_egress(invoke: Invoke) -> None:
    result = invoke("--from", "default/x", "GET", "http://a.example/")
    assert result.exit_code == 2
    assert "--egress" in result.output


TRUST = """\
apiVersion: router.datum.net/v1alpha1
kind: VPCService
metadata: {name: safe}
spec:
  protocol: HTTPS
  port: 443
  endpoints: [{address: 10.2.0.1}]
  tls: {mode: Mutual, clientCertificateRef: {name: edge}, subjectAltNames: ["spiffe://example.org/ns/shop/sa/web"],
    caCertificateRefs: [{name: edge, kind: Secret}]}
---
apiVersion: router.datum.net/v1alpha1
kind: VPCIngress
metadata: {name: safe}
spec:
  host: "*.safe.example"
  rules: [{service: {name: safe}}]
  tls:
    secretName: edge
    clientAuth: {mode: Require, caSecretName: edge, forwardClientCert: true, subjectAltNames: [spiffe://example.org/*]}
---
apiVersion: router.datum.net/v1alpha1
kind: VPCIngress
metadata: {name: open}
spec:
  host: open.safe.example
  rules: [{path: /public, service: {name: safe}}]
  tls: {secretName: edge}
---
"""


def test_what_certificates_are_asked_for_is_told_on_both_sides(invoke: Invoke, tmp_path: Path) -> None:
    period = authority.period(datetime.datetime.now(datetime.UTC), 1)
    ca = authority.Authority(authority.make_authority("ca", valid=period))
    secret = secret_manifest("edge", "default", ca.issue("edge", valid=period, dns=("safe.example",)), ca.cert_pem)
    (tmp_path / "conf" / "trust.yaml").write_text(TRUST + secret)
    text = invoke("GET", "https://a.safe.example/").stdout
    assert (
        "client certificate: required, for one of spiffe://example.org/*; the service is told in "
        "X-Forwarded-Client-Cert: By, Hash, Subject, URI, DNS"
    ) in text
    assert "        mutual TLS, verified as spiffe://example.org/ns/shop/sa/web" in text
    document = json.loads(invoke("GET", "https://a.safe.example/", "--output", "json").stdout)
    assert document["client_certificate"]["mode"] == "required"
    assert document["destinations"][0]["tls"].startswith("mutual TLS")
    # Asked for nothing, and so no way to what *.safe.example serves.
    text = invoke("GET", "https://open.safe.example/private").stdout
    assert "none is asked for here, but the rule's host name asks for one: 421" in text
    document = json.loads(invoke("GET", "https://open.safe.example/private", "--output", "json").stdout)
    assert (document["outcome"], document["status"]) == ("misdirected", 421)
    document = json.loads(invoke("GET", "https://open.safe.example/public", "--output", "json").stdout)
    assert (document["outcome"], document["client_certificate"]) == ("routed", None)
