"""From VPCEgress to an egress policy: one rule an object, in order, and the attachments that traffic may come from.

An object that can be used in part only is in force with what is left of it if it denies, and not at all if it allows:
what is in doubt stays closed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from datum_router.compiler.diagnostics import Severity
from datum_router.compiler.memo import Changes, Made, Memo, RecordingView
from datum_router.compiler.refs import Finding
from datum_router.compiler.services import CA_KEY
from datum_router.egress.address import parse_address
from datum_router.egress.decide import in_order
from datum_router.egress.destination import BadDestination, canonical_name
from datum_router.manifests.labels import selects
from datum_router.manifests.meta import ObjectKey, key_of, parse_duration
from datum_router.manifests.parts import Retries
from datum_router.manifests.secret import Secret
from datum_router.manifests.vpcegress import EgressDestination, EgressTls, TrafficProtocol, Verdict, VPCEgress
from datum_router.model.egress import (
    EgressAttachment,
    EgressPolicy,
    EgressProtocol,
    EgressRule,
    EgressTarget,
)
from datum_router.model.policy import RetryPolicy, TimeoutPolicy
from datum_router.model.service import UNRESOLVED, UpstreamTls
from datum_router.plugins.protocols import AttachmentFinder, ManifestView
from datum_router.reasons import Reason
from datum_router.routing.normalize import normalize_rule_path

MAX_ATTACHMENTS = 100_000
"""Attachments that a policy holds; traffic of those beyond, in order of name, is known by its interface alone."""


class EgressCompiler:
    """Compile VPCEgresses, each anew only if it or something that it was made from has changed.

    Args:
        finders: Who knows which attachments there are.
        are_credentials_known: False: no Secret is looked at, and every credential is taken to be there.
        has_listener: False: this gateway has no egress listener, which is said of each object; None: it is no gateway.
    """

    __slots__ = ("_are_credentials_known", "_attachments", "_finders", "_has_listener", "_policy", "_rules")

    def __init__(
        self,
        finders: Sequence[AttachmentFinder],
        *,
        are_credentials_known: bool = True,
        has_listener: bool | None = None,
    ) -> None:
        self._finders = finders
        self._are_credentials_known = are_credentials_known
        self._has_listener = has_listener
        self.forget()

    def forget(self) -> None:
        """Begin from nothing with the next view."""
        self._rules: Memo[EgressRule | None] = Memo("VPCEgress")
        self._attachments: Made[tuple[EgressAttachment, ...]] | None = None
        self._policy: EgressPolicy | None = None

    @property
    def policy(self) -> EgressPolicy | None:
        """Return the policy, the very object of before if nothing in it changed; None while there is no VPCEgress."""
        return self._policy

    def update(self, view: ManifestView, changes: Changes) -> None:
        """Bring the policy up to date."""
        before = self._attachments
        if not view.list("VPCEgress"):
            self._attachments = None
        elif before is None or not changes.looks.isdisjoint(before.looks):
            self._attachments = self._find(view)
        is_changed = self._attachments is not before
        for _ in self._rules.update(view, changes, self._make):
            is_changed = True
        if not is_changed:
            return
        rules = in_order(rule for _, rule in self._rules.results() if rule is not None)
        attachments = () if self._attachments is None else self._attachments.result
        new = EgressPolicy(rules=rules, attachments=attachments) if self._attachments is not None else None
        if new != self._policy:
            self._policy = new

    def findings(self) -> Iterator[Finding]:
        """Yield what was found wrong, in order of namespace and name."""
        yield from self._rules.findings()

    def _find(self, view: ManifestView) -> Made[tuple[EgressAttachment, ...]]:
        recording = RecordingView(view)
        found: dict[str, EgressAttachment] = {}
        for finder in self._finders:
            for one in finder.find(recording):
                found.setdefault(one.name, one)
        kept = tuple(found[name] for name in sorted(found)[:MAX_ATTACHMENTS])
        return Made(kept, (), tuple(recording.looks))

    def _make(
        self, manifest: msgspec.Struct, view: RecordingView
    ) -> tuple[EgressRule | None, Sequence[Finding]] | None:
        if not isinstance(manifest, VPCEgress):
            return None
        known = self._attachments
        assert known is not None  # there is a VPCEgress, so they were looked for
        view.looks.update(known.looks)
        made = _Egress(manifest, view if self._are_credentials_known else None)
        rule = made.compile(known.result)
        if self._has_listener is False:
            made.warn(
                "spec",
                Reason.NO_EGRESS_LISTENER,
                "this gateway has no egress listener, so no traffic is judged by it",
                hint="set DATUM_ROUTER_EGRESS_LISTEN or DATUM_ROUTER_EGRESS_TLS_LISTEN where traffic is to pass",
            )
        return rule, made.findings


class _Egress:
    """One object while it is compiled."""

    __slots__ = ("findings", "key", "manifest", "view")

    def __init__(self, manifest: VPCEgress, view: ManifestView | None) -> None:
        self.manifest = manifest
        self.view = view
        self.key = key_of("VPCEgress", manifest.metadata)
        self.findings: list[Finding] = []

    def compile(self, attachments: Sequence[EgressAttachment]) -> EgressRule | None:
        """Return the rule; None if it allows something and cannot be used whole."""
        spec = self.manifest.spec
        match = spec.match
        name = f"{self.key.namespace}/{self.key.name}"
        is_allow = spec.policy is Verdict.ALLOW
        count = len(self.findings)
        hostnames = self._names("spec.match.hostnames", match.hostnames) if match is not None else ()
        targets = tuple(
            one for index, item in enumerate(spec.destinations) if (one := self._target(index, item)) is not None
        )
        is_whole = len(self.findings) == count or all(one.severity is not Severity.ERROR for one in self.findings)
        if not is_whole and (is_allow or (not hostnames and not targets)):
            return None
        self._check_readable(is_allow=is_allow)
        limit = spec.rate_limit
        return EgressRule(
            name=name,
            namespace=self.key.namespace,
            attachments=self._attachments(attachments),
            is_allow=is_allow,
            priority=spec.priority,
            hostnames=hostnames,
            networks=match.destination_cidrs if match is not None else (),
            ports=match.destination_ports if match is not None else (),
            protocols=tuple(EgressProtocol(one.value) for one in match.protocols) if match is not None else (),
            methods=match.methods if match is not None else (),
            paths=tuple(_canonical_path(one) for one in match.path_prefixes) if match is not None else (),
            source_labels=match.source_labels if match is not None else None,
            targets=targets,
            is_default_allow=None if spec.default_action is None else spec.default_action is Verdict.ALLOW,
            is_logged=spec.log,
            rate=0.0 if limit is None else float(limit.requests_per_second),
            burst=0 if limit is None else limit.burst_size or limit.requests_per_second,
            retry=retry_policy(spec.retries),
            timeouts=self._timeouts(),
            idle_s=self._idle_s(),
        )

    def warn(
        self,
        path: str,
        reason: Reason,
        message: str,
        *,
        hint: str = "",
        is_reference: bool = False,
        missing: ObjectKey | None = None,
    ) -> None:
        """Note what does not keep the object out of force."""
        self._note(path, reason, message, hint, Severity.WARNING, is_reference=is_reference, missing=missing)

    def _note(
        self,
        path: str,
        reason: Reason,
        message: str,
        hint: str,
        severity: Severity,
        *,
        is_reference: bool = False,
        missing: ObjectKey | None = None,
    ) -> None:
        self.findings.append(
            Finding(
                key=self.key,
                path=path,
                reason=reason,
                message=message,
                hint=hint,
                severity=severity,
                is_reference=is_reference,
                missing=missing,
            )
        )

    def _check_readable(self, *, is_allow: bool) -> None:
        """Warn of conditions that cannot hold together: methods and paths are those of requests that can be read."""
        match = self.manifest.spec.match
        if match is None or not (match.methods or match.path_prefixes) or not match.protocols:
            return
        readable = {TrafficProtocol.TCP, TrafficProtocol.HTTP}
        if is_allow and readable.isdisjoint(match.protocols):
            self.warn(
                "spec.match.protocols",
                Reason.INVALID_VALUE,
                "methods and pathPrefixes are never known of TLS: nothing is allowed by this",
                hint="add HTTP, or remove methods and pathPrefixes",
            )

    def _attachments(self, known: Sequence[EgressAttachment]) -> tuple[str, ...] | None:
        """Return whose traffic it is about; None = all of the namespace."""
        spec, namespace = self.manifest.spec, self.key.namespace
        if spec.source_vpc_attachment is None and spec.source_selector is None:
            return None
        found: dict[str, None] = {}
        if spec.source_vpc_attachment is not None:
            name = f"{namespace}/{spec.source_vpc_attachment}"
            found[name] = None  # by its interface it is known even if there is no such object here
            if all(one.name != name for one in known):
                target = ObjectKey(kind="VPCAttachment", namespace=namespace, name=spec.source_vpc_attachment)
                self.warn(
                    "spec.sourceVpcAttachment",
                    Reason.ATTACHMENT_NOT_FOUND,
                    f"{target} is not there; its traffic is known by interface or setting alone",
                    is_reference=True,
                    missing=target,
                )
        if spec.source_selector is not None:
            chosen = [
                one.name
                for one in known
                if one.name.startswith(f"{namespace}/") and selects(spec.source_selector, one.labels)
            ]
            found.update(dict.fromkeys(chosen))
            if not chosen:
                self.warn(
                    "spec.sourceSelector",
                    Reason.ATTACHMENT_NOT_FOUND,
                    f"no vpcattachment of namespace {namespace} has the labels that are selected",
                    is_reference=True,
                )
        return tuple(sorted(found))

    def _names(self, path: str, texts: Sequence[str]) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for index, text in enumerate(texts):
            prefix = "*." if text.startswith("*.") else ""
            name = self._name(f"{path}[{index}]", text.removeprefix("*."))
            if name:
                found[f"{prefix}{name}"] = None
        return tuple(found)

    def _name(self, path: str, text: str) -> str:
        """Return a name as destinations are written, empty if no destination can be."""
        name = canonical_name(text)
        if not isinstance(name, BadDestination) and parse_address(name) is None:
            return name
        said = name.detail if isinstance(name, BadDestination) else "an address"
        self._note(
            path,
            Reason.INVALID_VALUE,
            f"found {said}: no destination is ever written so",
            "write the name as DNS has it, international labels as xn--",
            Severity.ERROR,
        )
        return ""

    def _target(self, index: int, item: EgressDestination) -> EgressTarget | None:
        path = f"spec.destinations[{index}]"
        address = parse_address(item.endpoint)
        host = str(address) if address is not None else self._name(f"{path}.endpoint", item.endpoint)
        if not host:
            return None
        tls = item.tls
        return EgressTarget(
            host=host,
            port=item.port,
            tls=self._tls(f"{path}.tls", tls, host) if tls is not None and tls.enabled else None,
        )

    def _tls(self, path: str, tls: EgressTls, host: str) -> UpstreamTls:
        if tls.insecure:
            self.warn(
                f"{path}.insecure",
                Reason.UPSTREAM_TLS,
                "certificates of this destination are not verified: anyone on the path can read its traffic",
                hint="set caSecretName to a Secret with the CA that signs them",
            )
        own = tls.client_certificate_secret_name
        cert_pem, key_pem = ("", "") if own is None else self._identity(path, own)
        return UpstreamTls(
            server_name=tls.sni or host,
            ca_pem=self._ca(path, tls.ca_secret_name) if tls.ca_secret_name is not None else "",
            is_verified=not tls.insecure,
            min_version=tls.min_version.value,
            cert_pem=cert_pem,
            key_pem=key_pem,
        )

    def _ca(self, path: str, name: str) -> str:
        if self.view is None:
            return UNRESOLVED
        secret = self.view.get("Secret", self.key.namespace, name)
        bundle = secret.text(CA_KEY) if isinstance(secret, Secret) else None
        if bundle is None:
            self.warn(
                f"{path}.caSecretName",
                Reason.INVALID_CERTIFICATE_REF,
                f"secret {self.key.namespace}/{name} with {CA_KEY} is not there; no certificate of the destination "
                "will be accepted",
                is_reference=True,
            )
        return bundle or UNRESOLVED

    def _identity(self, path: str, name: str) -> tuple[str, str]:
        """Return our certificate and key; `UNRESOLVED` if they are not there: nothing is sent without them."""
        if self.view is None:
            return UNRESOLVED, UNRESOLVED
        secret = self.view.get("Secret", self.key.namespace, name)
        found = secret.pair() if isinstance(secret, Secret) else None
        if found is None:
            self.warn(
                f"{path}.clientCertificateSecretName",
                Reason.INVALID_CERTIFICATE_REF,
                f"secret {self.key.namespace}/{name} with tls.crt and tls.key is not there; no connection to the "
                "destination will be made without a certificate of our own",
                hint="apply a secret of type kubernetes.io/tls with that name",
                is_reference=True,
            )
        return found or (UNRESOLVED, UNRESOLVED)

    def _timeouts(self) -> TimeoutPolicy:
        spec = self.manifest.spec
        request_s, connect_s = TimeoutPolicy().request_s, None
        if spec.timeouts is not None:
            if spec.timeouts.request is not None:
                request_s = parse_duration(spec.timeouts.request)
            if spec.timeouts.connect is not None:
                connect_s = parse_duration(spec.timeouts.connect)
        return TimeoutPolicy(request_s=request_s, connect_s=connect_s)

    def _idle_s(self) -> float | None:
        timeouts = self.manifest.spec.timeouts
        if timeouts is None or timeouts.stream_idle is None:
            return None
        return parse_duration(timeouts.stream_idle)


def retry_policy(retries: Retries | None) -> RetryPolicy:
    """Return when an attempt is repeated: at the other addresses of the name that were allowed."""
    if retries is None:
        return RetryPolicy()
    backoff = retries.backoff
    return RetryPolicy(
        max_retries=retries.max_retries,
        retry_on_status=retries.retry_on_status,
        initial_backoff_s=0.1 if backoff is None else backoff.initial_ms / 1000,
        max_backoff_s=10.0 if backoff is None else backoff.max_ms / 1000,
    )


def _canonical_path(text: str) -> str:
    found = normalize_rule_path(text)
    return found if isinstance(found, str) else text
