"""The corpus of manifests against a real API server: it takes and refuses what `datum-router check` does.

Objects are created as a dry run: all of admission and validation, and nothing is stored.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator

import msgspec
import pytest

from datum_router.manifests.kinds import OWN_KINDS
from datum_router.manifests.schema import crd
from datum_router.reasons import Reason
from tests.cluster.control_plane import ControlPlane
from tests.conformance.manifest_corpus import PLURALS, ROOT, Case, cases, is_at_or_above, judge, mutants

NAMESPACE = "default"
NOT_ALL_RULES = "<nil>"
"""The field of the note that rules were not run, since the types are wrong already."""
REASONS = {
    Reason.MISSING_FIELD: {"FieldValueRequired"},
    Reason.MUTUALLY_EXCLUSIVE: {"FieldValueForbidden", "FieldValueDuplicate"},
    Reason.NOT_SERVED: {"FieldValueForbidden"},
    Reason.INVALID_VALUE: {
        "FieldValueInvalid",
        "FieldValueNotSupported",
        "FieldValueTooMany",
        "FieldValueTooLong",
        "FieldValueTypeInvalid",
    },
}
"""Which reasons of the API server stand for ours."""


class Verdict(msgspec.Struct, frozen=True):
    """What the server said: status, message, and its reasons by field."""

    status: int
    message: str
    causes: dict[str, set[str]]
    body: dict[str, object]

    @property
    def is_taken(self) -> bool:
        return self.status == 201

    @property
    def fields(self) -> list[str]:
        return sorted(self.causes)


def submit(plane: ControlPlane, raw: dict[str, object]) -> Verdict:
    path = f"/apis/router.datum.net/v1alpha1/namespaces/{NAMESPACE}/{PLURALS[str(raw['kind'])]}"
    answer = plane.request("POST", f"{path}?dryRun=All&fieldValidation=Strict", raw)
    body = answer.json()
    message, causes = str(body.get("message", "")), {}
    if answer.status == 400:  # unknown fields, under strict validation
        causes = {field: {"Unknown"} for field in re.findall(r'unknown field "([^"]+)"', message)}
    elif answer.status != 201:
        details = body["details"]
        assert isinstance(details, dict)
        for cause in details["causes"]:
            if cause["field"] != NOT_ALL_RULES:
                causes.setdefault(cause["field"], set()).add(cause["reason"])
    return Verdict(answer.status, message, causes, body)


@pytest.mark.parametrize("case", [*cases("good"), *cases("offline-only")], ids=lambda case: case.name)
def test_what_is_good_is_taken(plane: ControlPlane, case: Case) -> None:
    verdict = submit(plane, case.raw)
    assert verdict.is_taken, verdict.message


@pytest.mark.parametrize("case", cases("good"), ids=lambda case: case.name)
def test_an_object_with_the_defaults_of_the_server_means_what_it_meant(plane: ControlPlane, case: Case) -> None:
    before, _ = judge(case.raw)
    after, paths = judge(submit(plane, case.raw).body)
    assert paths == set()
    assert after.manifest is not None
    assert after.manifest.spec == before.manifest.spec  # type: ignore[attr-defined]


@pytest.mark.parametrize("case", cases("bad"), ids=lambda case: case.name)
def test_what_is_bad_is_refused_and_the_field_named(plane: ControlPlane, case: Case) -> None:
    verdict = submit(plane, case.raw)
    assert verdict.status in (400, 422), verdict.message
    assert set(case.server) <= set(verdict.fields), verdict.message
    # What is wrong in a part may make the whole wrong, too, and nothing else.
    assert [field for field in verdict.fields if not is_at_or_above(field, case.server)] == []
    decoded, _ = judge(case.raw)
    for item in decoded.diagnostics:
        if item.path in verdict.causes and item.reason in REASONS:
            assert verdict.causes[item.path] & REASONS[item.reason], (item.render(), verdict.message)


def test_kubectl_names_the_field_of_each_bad_manifest(plane: ControlPlane) -> None:
    done = plane.kubectl(
        "create", "-f", str(ROOT / "bad"), "--dry-run=server", "--validate=strict", "-o", "name", namespace=NAMESPACE
    )
    assert done.returncode != 0
    assert done.stdout == ""
    said: dict[str, str] = {}
    for text in re.split(r"^(?=Error from server)", done.stderr, flags=re.MULTILINE):
        found = re.search(r'error when creating "[^"]*/([^"/]+)\.yaml"', text)
        if found:
            said[found[1]] = said.get(found[1], "") + text
    for case in cases("bad"):
        for field in case.server:
            assert re.search(rf'[ \["]{re.escape(field)}[:"]', said[case.name]), (field, said[case.name])


def test_kubectl_applies_all_good_manifests_and_again_without_a_change(
    plane: ControlPlane, namespace: Callable[[], str]
) -> None:
    there = namespace()
    versions = []
    for _ in range(2):
        done = plane.kubectl("apply", "--validate=strict", "-f", str(ROOT / "good"), namespace=there)
        assert done.returncode == 0, done.stderr
        # kubectl says "configured" of lists whose items have defaults; whether anything changed, the version tells.
        versions.append(plane.kubectl("get", "datum", "-o", "name", "--show-kind", namespace=there).stdout)
        listed = plane.kubectl("get", "datum", "-o", "jsonpath={.items[*].metadata.resourceVersion}", namespace=there)
        versions.append(listed.stdout)
    assert versions[:2] == versions[2:]
    assert len(versions[1].split()) == len(cases("good"))


def test_a_namespace_that_cannot_be_is_refused(plane: ControlPlane) -> None:
    raw = {**cases("good")[0].raw, "metadata": {"name": "a", "namespace": "Bad_Namespace"}}
    assert judge(raw)[1] == {"metadata.namespace"}
    done = plane.kubectl("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(raw))
    assert done.returncode != 0
    assert 'namespaces "Bad_Namespace" not found' in done.stderr


def test_whatever_breaks_a_type_is_refused_and_the_field_named(plane: ControlPlane) -> None:
    wrong = {}
    for case in mutants():
        verdict = submit(plane, case.raw)
        if verdict.is_taken or not set(case.server) <= set(verdict.fields):
            wrong[case.name] = verdict.message
    assert wrong == {}


def rules_in(schema: dict[str, object]) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):  # type: ignore[attr-defined]
        yield rule["message"]
    parts = [*schema.get("properties", {}).values()]  # type: ignore[attr-defined]
    parts += [schema[name] for name in ("items", "additionalProperties") if name in schema]
    for part in parts:
        yield from rules_in(part)


def test_each_rule_refuses_a_bad_manifest(plane: ControlPlane) -> None:
    said = {kind.kind: "" for kind in OWN_KINDS}
    for case in cases("bad"):
        said[case.kind] += submit(plane, case.raw).message
    for kind in OWN_KINDS:
        schema = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]  # type: ignore[index]
        assert [rule for rule in rules_in(schema) if rule not in said[kind.kind]] == []


# --- texts whose grammar is written down twice -----------------------------------------------------------------


GRAMMARS: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "path": (
        "VPCRoute",
        '{"match": {"exactPath": %s}, "destinations": [{"vpcServiceRef": {"name": "s"}}]}',
        ("/", "/a/b", "/caf%C3%A9", "/a;b=c", "/.well-known", "/a/..", "/a//b", "/%2e%2E;x", "/é", "a" * 1024),
        "/.%2eEfFcC5;?#\\ a\té\x7f\u0085\u2028",
    ),
    "sent path": (
        "VPCService",
        '{"port": 80, "endpoints": [{"address": "10.0.0.1"}], "healthCheck": {"httpPath": %s}}',
        ("/healthz", "/a?b=%20", "/a?b?c/../d", "/a?//", "?a", "/%2E?x", "/~!$&'()*+,;=:@"),
        '/.%2eF?#\\ a\té"<>[]^`{|}',
    ),
    "host": (
        "VPCRoute",
        '{"hostnames": [%s], "destinations": [{"vpcServiceRef": {"name": "s"}}]}',
        ("a.example", "*.b.c", "LOCALHOST", "xn--a", "10.0.0.1", "256.0.0.1", "1.2.3", "::1", "a" * 63 + ".b"),
        "aZ0-.*_:[]\u212a\u0130 é",
    ),
    "host and port": (
        "VPCService",
        '{"port": 80, "endpoints": [{"address": "10.0.0.1"}], "healthCheck": {"host": %s}}',
        ("a.example", "a.example:80", "a:65535", "a:065", "10.0.0.1:80", "a:65536", "a:", "a:0"),
        "a0123569-.:[]\u0660 ",
    ),
    "address": (
        "VPCService",
        '{"port": 80, "endpoints": [{"address": %s}]}',
        ("10.0.0.1", "fd00::1", "1:2:3:4:5:6:7:8", "::1.2.3.4", "224.0.0.1", "ff02::1", "fe80::1%a", "0.0.0.0"),
        "0123456789abcdefF:.%/[] \u0660",
    ),
    "network": (
        "VPCRoute",
        '{"match": {"sourceCIDRs": [%s]}, "destinations": [{"vpcServiceRef": {"name": "s"}}]}',
        ("10.0.0.0/8", "10.0.0.1", "fd00::/8", "::/0", "1.2.3.4/32", "10.0.0.0/08", "::ffff:1.2.3.4/100", "10/8"),
        "0123456789abcdefF:./ %+-",
    ),
    "duration": (
        "VPCService",
        '{"port": 80, "endpoints": [{"address": "10.0.0.1"}], "connectTimeout": %s}',
        ("10s", "1h1m1s1ms", "0s", "00000ms", "99999h99999h99999h99999h", "1m1h", "1.5s", "1us"),
        "0159hms. u-",
    ),
    "name": (
        "VPCService",
        '{"port": 80, "vpcAttachmentRef": {"name": %s}}',
        ("a", "a.b-c", "0", "a" * 253, "A", "a..b", "-a"),
        "aZ0-._/ é",
    ),
    "header": (
        "VPCRoute",
        '{"match": {"headers": {%s: "v"}}, "destinations": [{"vpcServiceRef": {"name": "s"}}]}',
        ("x-a", "Host", "TE", "Keep-Alive", "content-length", ":path", "a" * 256, "!#$%&'*+-.^_`|~"),
        "aZ0-:_ '\"\u212a(",
    ),
    "label": (
        "VPCService",
        '{"port": 80, "endpoints": [{"address": "10.0.0.1"}], "labels": {%s: "v"}}',
        ("a", "example.com/tier", "A_b.c", "a" * 63, "a/b/c", "/a", "example.com/", "a." * 126 + "a/b"),
        "aZ0-._/ é",
    ),
    "expression": (
        "VPCRoute",
        '{"match": {"pathRegex": %s}, "destinations": [{"vpcServiceRef": {"name": "s"}}]}',
        ("/a+", "/(a|b)*", "/[a-z]{1,3}", r"/\pL\d", "/(?i:a)", "/(?P<n>a)", "/a{2,1}", "/(?=a)", "/[[:alpha:]]"),
        r"/ab()[]{}|*+?.^$\,1-:é",
    ),
}
"""Kind, a spec with a hole, texts to begin with, and characters to change them with."""
ROUNDS = 60
"""Changed texts of each grammar."""


def changed(seeds: tuple[str, ...], alphabet: str, rng: random.Random) -> str:
    """Return a seed after one to three changes of a character."""
    text = rng.choice(seeds)
    for _ in range(rng.randint(1, 3)):
        place = rng.randint(0, len(text))
        text = text[:place] + rng.choice(["", rng.choice(alphabet)]) + text[place + rng.randint(0, 1) :]
    return text


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_both_validators_read_a_text_alike(plane: ControlPlane, grammar: str) -> None:
    if grammar == "expression":
        pytest.importorskip("re2", reason="patterns need the optional extra datum-router[re2]")
    kind, hole, seeds, alphabet = GRAMMARS[grammar]
    rng = random.Random(grammar)
    texts = [*seeds, *(changed(seeds, alphabet, rng) for _ in range(ROUNDS))]
    taken, differ = 0, {}
    for text in texts:
        raw = {
            "apiVersion": "router.datum.net/v1alpha1",
            "kind": kind,
            "metadata": {"name": "text"},
            "spec": json.loads(hole % json.dumps(text)),
        }
        verdict, (_, paths) = submit(plane, raw), judge(raw)
        taken += verdict.is_taken
        if verdict.is_taken == bool(paths):
            differ[text] = verdict.message or sorted(paths)
    assert differ == {}
    assert 0 < taken < len(texts), "the texts are neither all good nor all bad"


# --- large objects ---------------------------------------------------------------------------------------------


def repeated(count: int, make: object) -> list[object]:
    return [make(number) for number in range(count)]  # type: ignore[operator]


LARGEST: dict[str, tuple[str, dict[str, object]]] = {
    "endpoints": (
        "VPCService",
        {"port": 80, "endpoints": repeated(10_000, lambda n: {"address": f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"})},
    ),
    "matches": (
        "VPCRoute",
        {
            "matches": repeated(
                64,
                lambda n: {
                    "pathPrefix": f"/{n}/" + "a/" * 120,
                    "headers": {f"x-header-{m}": "v" * 20 for m in range(16)},
                    "headerMatches": repeated(16, lambda m: {"name": f"x-match-{m}", "value": "v" * 20}),
                    "queryParams": {f"parameter-{m}": "v" * 20 for m in range(16)},
                    "queryParamMatches": repeated(
                        16, lambda m: {"name": f"p{m}", "type": "RegularExpression", "value": "[a-z]+" * 5}
                    ),
                    "sourceCIDRs": repeated(64, lambda m: f"10.{m}.0.0/16"),
                    "methods": ["GET"] * 16,
                },
            ),
            "hostnames": repeated(16, lambda n: f"{n}." + "a.example." * 10 + "com"),
            "destinations": [{"vpcServiceRef": {"name": "s"}}] * 64,
            "loadBalancing": "consistent-hash",
            "loadBalancingConfig": {"tableSize": 5_000_011},
        },
    ),
    "filters": (
        "VPCRoute",
        {
            "destinations": [{"vpcServiceRef": {"name": "s"}}] * 64,
            "filters": repeated(
                16,
                lambda n: {
                    "type": "RequestHeaderModifier",
                    "requestHeaderModifier": {
                        "set": repeated(32, lambda m: {"name": f"x-set-{m}", "value": "v" * 20}),
                        "add": repeated(32, lambda m: {"name": f"x-add-{m}", "value": "v" * 20}),
                        "remove": repeated(32, lambda m: f"x-remove-{m}"),
                    },
                },
            ),
        },
    ),
    "rules": (
        "VPCIngress",
        {
            "host": "a.example",
            "hosts": repeated(64, lambda n: f"{n}." + "a.example." * 10 + "com"),
            "rules": repeated(256, lambda n: {"path": f"/{n}/" + "a/" * 120, "service": {"name": "s"}}),
            "listeners": repeated(64, lambda n: {"name": f"l{n}", "port": 8000 + n}),
        },
    ),
    "mappings": (
        "ServiceBinding",
        {
            "serviceRef": {"name": "a"},
            "vpcServiceRef": {"name": "b"},
            "portMappings": repeated(64, lambda n: {"servicePort": n + 1}),
        },
    ),
}


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_objects_are_within_what_the_server_spends_on_rules(plane: ControlPlane, name: str) -> None:
    kind, spec = LARGEST[name]
    raw: dict[str, object] = {
        "apiVersion": "router.datum.net/v1alpha1",
        "kind": kind,
        "metadata": {"name": "largest"},
        "spec": spec,
    }
    decoded, paths = judge(raw)
    assert paths == set(), [item.render() for item in decoded.diagnostics]
    verdict = submit(plane, raw)
    assert verdict.is_taken, verdict.message[:2000]
