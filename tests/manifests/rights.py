"""What service accounts did, by an API server's audit log, beside what roles let them do.

The log has one JSON object a line (`audit.k8s.io/v1` Event). A list or watch with `fieldSelector=metadata.name=x` has
the name x in it, since that is how the API server reads such a request, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from tests.manifests.documents import Document

NAMELESS_VERBS = frozenset({"create", "deletecollection"})
"""Verbs that are decided without a name, so that `resourceNames` never lets them through."""


class Use(NamedTuple):
    """One kind of request that a user made; an empty namespace means the whole cluster, an empty name any."""

    user: str
    verb: str
    group: str
    resource: str
    namespace: str
    name: str

    def __str__(self) -> str:
        target = f"{self.resource}{f'.{self.group}' if self.group else ''}{f' {self.name}' if self.name else ''}"
        account = self.user.rpartition(":")[2]
        return f"{account} {self.verb} {target} in {self.namespace or 'all namespaces'}"


class Grant(NamedTuple):
    """One verb on one resource that a binding gives to a user; an empty namespace means all, an empty name any."""

    user: str
    verb: str
    group: str
    resource: str
    namespace: str
    name: str
    role: str

    def covers(self, use: Use) -> bool:
        """Tell whether this right is enough for a request."""
        return (
            (self.user, self.verb, self.group, self.resource) == (use.user, use.verb, use.group, use.resource)
            and self.namespace in ("", use.namespace)
            and self.name in ("", use.name)
        )

    def __str__(self) -> str:
        return f"{Use(*self[:6])} by {self.role}"


class Record(NamedTuple):
    """What an audit log says of some users."""

    uses: frozenset[Use]
    refused: frozenset[Use]


def read_audit(lines: Iterable[str], users: Iterable[str]) -> Record:
    """Return what `users` asked for, and what of it they had no right to.

    Requests beside resources (`/apis`, `/version`, `/openapi`) are open to everybody and left out.
    """
    watched = frozenset(users)
    uses: set[Use] = set()
    refused: set[Use] = set()
    for line in lines:
        event = json.loads(line)
        reference = event.get("objectRef")
        if event["stage"] == "RequestReceived" or event["user"]["username"] not in watched or reference is None:
            continue
        use = _use(event["user"]["username"], event["verb"], reference)
        uses.add(use)
        # Admission refuses with 403, too; that is no question of rights.
        if event.get("annotations", {}).get("authorization.k8s.io/decision") == "forbid":
            refused.add(use)
    return Record(frozenset(uses), frozenset(refused))


def _use(user: str, verb: str, reference: Mapping[str, str]) -> Use:
    subresource = reference.get("subresource", "")
    return Use(
        user=user,
        verb=verb,
        group=reference.get("apiGroup", ""),
        resource=reference["resource"] + (f"/{subresource}" if subresource else ""),
        # A namespace itself is an object of the cluster, though its requests name a namespace.
        namespace="" if reference["resource"] == "namespaces" else reference.get("namespace", ""),
        name="" if verb in NAMELESS_VERBS else reference.get("name", ""),
    )


def read_grants(documents: Iterable[Document], users: Iterable[str]) -> frozenset[Grant]:
    """Return what bindings among `documents` give to service accounts among `users`, in its smallest parts."""
    known = list(documents)
    roles = {_key(item): item for item in known if item["kind"] in ("Role", "ClusterRole")}
    wanted = frozenset(users)
    found: set[Grant] = set()
    for binding in known:
        if binding["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        namespace = binding["metadata"].get("namespace", "")
        ref = binding["roleRef"]
        role = roles[(ref["kind"], namespace if ref["kind"] == "Role" else "", ref["name"])]
        for subject in binding["subjects"]:
            user = f"system:serviceaccount:{subject['namespace']}:{subject['name']}"
            if user in wanted:
                found.update(_parts(role, user, namespace))
    return frozenset(found)


def _key(role: Document) -> tuple[str, str, str]:
    return role["kind"], role["metadata"].get("namespace", ""), role["metadata"]["name"]


def _parts(role: Document, user: str, namespace: str) -> Iterator[Grant]:
    said = f"{role['kind']} {role['metadata']['name']}"
    for rule in role["rules"]:
        for verb in rule["verbs"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    for name in rule.get("resourceNames") or [""]:
                        yield Grant(user, verb, group, resource, namespace, name, said)


def ungranted(uses: Iterable[Use], grants: Iterable[Grant]) -> list[Use]:
    """Return what was asked for, but no role gives, in order."""
    known = list(grants)
    return sorted(use for use in uses if not any(grant.covers(use) for grant in known))


def unused(grants: Iterable[Grant], uses: Iterable[Use]) -> list[Grant]:
    """Return what roles give, but nobody asked for, in order."""
    known = list(uses)
    return sorted(grant for grant in grants if not any(grant.covers(use) for use in known))
