"""`datum-router certs`: a development CA, and an identity for each service."""

from __future__ import annotations

import base64
import datetime
import importlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from datum_router.errors import ConfigError
from datum_router.manifests.meta import DEFAULT_NAMESPACE
from datum_router.manifests.rules import check_host
from datum_router.policy.peer_names import is_spiffe_id
from datum_router.reasons import Reason
from datum_router_cli.failure import RouterCommand, RouterGroup, require
from datum_router_cli.output import output_option, print_json, printable

if TYPE_CHECKING:
    from datum_router_cli.authority import Pair

CA_DAYS = 365
"""Days for which a development CA is good."""
LEAF_DAYS = 30
"""Days for which an identity is good."""
MAX_DAYS = 3650
KEY_MODE = 0o600
CERT_MODE = 0o644

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\Z")
_TIME = "%Y-%m-%dT%H:%M:%SZ"

_days = {
    "ca": click.option("--days", default=CA_DAYS, show_default=True, help=f"How long it is good, 1 to {MAX_DAYS}."),
    "leaf": click.option("--days", default=LEAF_DAYS, show_default=True, help=f"How long it is good, 1 to {MAX_DAYS}."),
}
_not_before = click.option(
    "--not-before",
    metavar="TIME",
    help="When that time begins, such as 2026-01-01T00:00:00Z; the certificate is good from 5 minutes before. "
    "Default: now.",
)
_force = click.option("--force", is_flag=True, help="Replace files that are there.")
_output = click.option(
    "--output",
    type=click.Choice(["files", "yaml"]),
    default="files",
    show_default=True,
    help="Files beside the CA, or a Secret on standard output.",
)


@click.group(cls=RouterGroup, short_help="Make a development CA, and identities of services.")
def certs() -> None:
    """Make certificates for trying mutual TLS out: a CA, and for each service an identity with a SPIFFE ID.

    Not for production: the CA's key lies in a file, and nothing renews what it issues. There, cert-manager or SPIRE
    make certificates of the same form.

    \b
    Examples:
      datum-router certs init pki --trust-domain example.org
      datum-router certs issue pki web --namespace shop --dns web.shop.svc
      datum-router certs show pki/web.crt
    """


@certs.command(cls=RouterCommand)
@click.argument("directory", metavar="DIR")
@click.option("--trust-domain", default="example.org", show_default=True, help="Trust domain of its SPIFFE IDs.")
@_days["ca"]
@_not_before
@_force
def init(directory: str, trust_domain: str, days: int, not_before: str | None, force: bool) -> None:
    """Make a CA: DIR/ca.crt and DIR/ca.key, which only its owner may read.

    \b
    Example:
      datum-router certs init pki --trust-domain example.org
    """
    domain = trust_domain.removeprefix("spiffe://")
    require(
        is_spiffe_id(f"spiffe://{domain}") and "/" not in domain,
        f"--trust-domain: found {trust_domain!r}, expected lower-case letters, digits, dots, dashes and underscores",
    )
    _need_cryptography()
    from datum_router_cli.authority import make_authority, period

    valid = period(_moment(not_before), _checked_days(days))
    pair = make_authority(f"Datum Router development CA, {domain}", valid=valid, trust_domain=domain)
    _write_pair(Path(directory), "ca", pair, is_forced=force)


@certs.command(cls=RouterCommand)
@click.argument("directory", metavar="DIR")
@click.argument("name", metavar="NAME")
@click.option(
    "--namespace", default=DEFAULT_NAMESPACE, show_default=True, help="Namespace of its SPIFFE ID and Secret."
)
@click.option("--service-account", metavar="NAME", help="Last part of its SPIFFE ID. Default: NAME.")
@click.option("--spiffe-id", metavar="ID", help="Default: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT.")
@click.option("--dns", "hosts", metavar="HOST", multiple=True, help="DNS name in the certificate; repeatable.")
@_days["leaf"]
@_not_before
@_output
@_force
def issue(
    directory: str,
    name: str,
    namespace: str,
    service_account: str | None,
    spiffe_id: str | None,
    hosts: tuple[str, ...],
    days: int,
    not_before: str | None,
    output: str,
    force: bool,
) -> None:
    """Issue an identity by the CA in DIR: DIR/NAME.crt and DIR/NAME.key, or a Secret called NAME.

    It serves as server and as client. Its SPIFFE ID has the form that Istio uses:
    spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/NAME. The Secret has tls.crt, tls.key and ca.crt, as cert-manager writes it.

    \b
    Examples:
      datum-router certs issue pki web --namespace shop --dns web.shop.svc
      datum-router certs issue pki web --namespace shop --output yaml > manifests/web-tls.yaml
    """
    for option, text in (("NAME", name), ("--namespace", namespace), ("--service-account", service_account)):
        require(
            text is None or _NAME.match(text) is not None,
            f"{option}: found {text!r}, expected lower-case letters, digits, dashes and dots",
        )
    require(name != "ca", "NAME: found 'ca', which is the CA's own; choose another name")
    for host in hosts:
        problem = next(iter(check_host("--dns", host)), None)
        require(problem is None, f"--dns: {problem.message if problem is not None else ''}")
    _need_cryptography()
    from datum_router_cli.authority import Authority, Pair, period

    folder = Path(directory)
    authority = Authority(Pair(cert_pem=_read(folder / "ca.crt", "init"), key_pem=_read(folder / "ca.key", "init")))
    identity = spiffe_id or f"spiffe://{authority.trust_domain}/ns/{namespace}/sa/{service_account or name}"
    require(
        is_spiffe_id(identity),
        f"--spiffe-id: found {identity!r}, expected an ID such as spiffe://example.org/ns/shop/sa/web",
    )
    valid = period(_moment(not_before), _checked_days(days))
    pair = authority.issue(name, valid=valid, uris=(identity,), dns=hosts)
    if output == "yaml":
        click.echo(secret_manifest(name, namespace, pair, authority.cert_pem), nl=False)
    else:
        _write_pair(folder, name, pair, is_forced=force)


@certs.command(cls=RouterCommand)
@click.argument("file", metavar="FILE")
@output_option
def show(file: str, output: str) -> None:
    """Say what stands in the certificates of FILE: names, whether it is a CA, and until when it is good.

    \b
    Example:
      datum-router certs show pki/web.crt
    """
    _need_cryptography()
    from datum_router_cli.authority import describe

    described = describe(_read(Path(file)))
    if output == "json":
        print_json({"certificates": described})
        return
    for one in described:
        click.echo(printable(f"subject  {one.subject or '(none)'}{' (a CA)' if one.is_ca else ''}"))
        for name in (*one.uris, *one.dns):
            click.echo(printable(f"name     {name}"))
        click.echo(printable(f"issuer   {one.issuer or '(none)'}"))
        click.echo(f"valid    {one.begins_at.strftime(_TIME)} to {one.ends_at.strftime(_TIME)}")
        click.echo(f"sha256   {one.sha256}")


def secret_manifest(name: str, namespace: str, pair: Pair, ca_pem: str) -> str:
    """Return a Secret as cert-manager writes it."""
    entries = (("ca.crt", ca_pem), ("tls.crt", pair.cert_pem), ("tls.key", pair.key_pem))
    lines = [f"  {entry}: {base64.b64encode(text.encode()).decode()}\n" for entry, text in entries]
    return (
        f"apiVersion: v1\nkind: Secret\nmetadata:\n  name: {name}\n  namespace: {namespace}\n"
        f"type: kubernetes.io/tls\ndata:\n{''.join(lines)}"
    )


def _need_cryptography() -> None:
    """Raise ConfigError if what makes certificates is not installed: the other commands do without it."""
    try:
        importlib.import_module("cryptography.x509")
    except ImportError as error:
        raise ConfigError(
            "certs: the package cryptography is not installed, which makes certificates; "
            "install datum-router-cli with its extra certs",
            reason=Reason.MISSING_FIELD,
        ) from error


def _moment(text: str | None) -> datetime.datetime:
    if text is None:
        return datetime.datetime.now(datetime.UTC)
    try:
        return datetime.datetime.strptime(text, _TIME).replace(tzinfo=datetime.UTC)
    except ValueError:
        raise ConfigError(
            f"--not-before: found {text!r}, expected a time such as 2026-01-01T00:00:00Z", reason=Reason.INVALID_VALUE
        ) from None


def _checked_days(days: int) -> int:
    require(1 <= days <= MAX_DAYS, f"--days: found {days}, expected 1 to {MAX_DAYS}")
    return days


def _read(file: Path, maker: str = "") -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "it is no text"
        hint = f"; make it by `datum-router certs {maker} {file.parent}`" if maker else ""
        raise ConfigError(f"{file}: cannot be read: {said}{hint}", reason=Reason.INVALID_VALUE) from error


def _write_pair(folder: Path, name: str, pair: Pair, *, is_forced: bool) -> None:
    files = ((folder / f"{name}.key", pair.key_pem, KEY_MODE), (folder / f"{name}.crt", pair.cert_pem, CERT_MODE))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, _, _ in files:
            require(is_forced or not os.path.lexists(file), f"{file}: is there already; --force replaces what is there")
        for file, text, mode in files:
            _replace(file, text, mode)
            click.echo(f"wrote {printable(str(file))}")
    except OSError as error:
        said = (error.strerror or str(error)).lower()
        raise ConfigError(f"{folder}: cannot be written: {said}", reason=Reason.INVALID_VALUE) from error


def _replace(file: Path, text: str, mode: int) -> None:
    """Write a file as a whole: whoever reads it sees the old one or the new one, and nobody else ever a key."""
    beside = file.with_name(f".{file.name}.new")
    beside.unlink(missing_ok=True)
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            os.fchmod(opened.fileno(), mode)  # whatever the umask
            opened.write(text)
        beside.replace(file)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
