"""Where the cluster is and who we are there: kubeconfig or a pod's service account, by the official client.

Imports `kubernetes`, so nothing but `client.make_client` imports this module, and only when it is called.
"""

# The configuration half of the official client has no annotations.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import urllib3

from datum_router.compiler.diagnostics import did_you_mean
from datum_router.errors import ConfigError
from datum_router.manifests.meta import DEFAULT_NAMESPACE, is_namespace
from datum_router.reasons import Reason
from datum_router_kubernetes import textconfig
from datum_router_kubernetes.config import KUBECONFIG_TEXT

if TYPE_CHECKING:
    from kubernetes.client import Configuration

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds token, authority and namespace of its service account."""
IN_CLUSTER = "KUBERNETES_SERVICE_HOST"
"""The variable that is set in every pod."""
HOME_KUBECONFIG = "~/.kube/config"
_BEARER = "BearerToken"


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where the configuration is read from.

    Attributes:
        kubeconfig: Paths, separated as in $KUBECONFIG; empty: this is a pod.
        named_by: What named them, for messages.
        context: Empty: the kubeconfig's current one.
        account: Directory of the service account.
        text: The kubeconfig itself, of somebody who is trusted with nothing but to name a cluster.
    """

    kubeconfig: str = ""
    text: str = ""
    named_by: str = ""
    context: str = ""
    account: Path = ACCOUNT


class Access:
    """A loaded configuration. Not thread-safe but for its pool.

    Attributes:
        server: Address of the API, no slash at its end.
        pool: Connections to it, TLS and proxy set up.
        note: Whose credentials these are, for messages; never what they are.
    """

    __slots__ = ("_configuration", "namespace", "note", "pool", "server")

    def __init__(self, configuration: Configuration, pool: urllib3.PoolManager, *, namespace: str, note: str) -> None:
        self._configuration = configuration
        self.pool = pool
        self.server = configuration.host.rstrip("/")
        self.namespace = namespace if is_namespace(namespace) else DEFAULT_NAMESPACE
        self.note = note

    def headers(self) -> Mapping[str, str]:
        """Return what says who we are. May read a token file or run an exec plugin, if what it gave has expired.

        Raises:
            Exception: Whatever the official client does when that fails.
        """
        value = self._configuration.get_api_key_with_prefix(_BEARER)
        if not value:
            return {}
        value = value.strip()
        if not (value.isascii() and value.isprintable()):
            raise ValueError("the token has characters that no token has")
        return {"authorization": value}


def locate(settings: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> Place:
    """Return where the configuration is: setting `kubeconfig`, $KUBECONFIG, the pod's account, ~/.kube/config.

    Setting `kubeconfigText` goes before all. Looks for the files, reads none.

    Raises:
        ConfigError: It is nowhere, there is no file where a setting or variable says it is, or the text says what it
            may not.
    """
    context = settings.get("context", "")
    if KUBECONFIG_TEXT in settings:
        textconfig.read(settings[KUBECONFIG_TEXT], context)
        return Place(text=settings[KUBECONFIG_TEXT], named_by=f"setting {KUBECONFIG_TEXT}", context=context)
    for paths, named_by in (
        (settings.get("kubeconfig", ""), "setting kubeconfig"),
        (environ.get("KUBECONFIG", ""), "KUBECONFIG"),
    ):
        if not paths:
            continue
        if "\0" in paths or not any(Path(path).expanduser().is_file() for path in paths.split(os.pathsep) if path):
            raise ConfigError(
                f"{named_by}: found {paths!r}, where there is no file; expected the path of a kubeconfig",
                reason=Reason.INVALID_VALUE,
            )
        return Place(kubeconfig=paths, named_by=named_by, context=context)
    if environ.get(IN_CLUSTER):
        return Place()
    if Path(HOME_KUBECONFIG).expanduser().is_file():
        return Place(kubeconfig=HOME_KUBECONFIG, named_by=HOME_KUBECONFIG, context=context)
    raise ConfigError(
        "no cluster is configured: expected setting kubeconfig, variable KUBECONFIG, a pod's service account, or "
        f"{HOME_KUBECONFIG}",
        reason=Reason.MISSING_FIELD,
    )


def load_access(place: Place) -> Access:
    """Read the configuration and set up connections; none is made yet.

    Raises:
        ConfigError: Something is missing or wrong: names the file, what is wrong, and what would be right.
    """
    from kubernetes.client import Configuration
    from kubernetes.client.rest import RESTClientObject

    from datum_router_kubernetes.client import POOL_CLASSES, POOL_SIZE, SOCKET_OPTIONS

    configuration = Configuration()
    configuration.host = ""  # not where the official client would look for an API if nothing names one
    if place.named_by.endswith(KUBECONFIG_TEXT):
        namespace, note = _load_text(place, configuration)
    elif place.kubeconfig:
        namespace, note = _load_kubeconfig(place, configuration)
    else:
        namespace, note = _load_account(place, configuration)
    configuration.socket_options = list(SOCKET_OPTIONS)
    configuration.connection_pool_maxsize = POOL_SIZE
    try:
        pool = RESTClientObject(configuration).pool_manager
    except Exception as error:
        raise ConfigError(f"{note}: cannot be used: {_told(error)}", reason=Reason.INVALID_VALUE) from error
    if type(pool) in (urllib3.PoolManager, urllib3.ProxyManager):  # connections through SOCKS have a type of their own
        pool.pool_classes_by_scheme = dict(POOL_CLASSES)
    return Access(configuration, pool, namespace=namespace, note=note)


def _load_account(place: Place, configuration: Configuration) -> tuple[str, str]:
    from kubernetes.config.config_exception import ConfigException
    from kubernetes.config.incluster_config import InClusterConfigLoader

    note = f"service account of this pod in {place.account}"
    try:
        loader = InClusterConfigLoader(
            token_filename=str(place.account / "token"), cert_filename=str(place.account / "ca.crt")
        )
        loader.load_and_set(configuration)
    except (ConfigException, OSError, UnicodeError) as error:
        raise ConfigError(
            f"{note}: {_told(error)}; expected token and ca.crt there (automountServiceAccountToken) and "
            "KUBERNETES_SERVICE_HOST and _PORT in the environment",
            reason=Reason.INVALID_VALUE,
        ) from error
    try:
        namespace = (place.account / "namespace").read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        namespace = ""
    return namespace, note


def _load_text(place: Place, configuration: Configuration) -> tuple[str, str]:
    from kubernetes.config.kube_config import KubeConfigLoader

    chosen = textconfig.read(place.text, place.context)
    try:
        loader = KubeConfigLoader(config_dict=chosen.config, config_base_path=None, active_context=textconfig.NAME)
        loader.load_and_set(configuration)
    except Exception as error:  # noqa: BLE001 - whatever it is, its text could hold what the kubeconfig holds
        raise ConfigError(
            f"kubeconfig: cannot be used: {type(error).__name__}; expected what `kubectl config view --raw --minify "
            "--flatten` prints",
            reason=Reason.INVALID_KUBECONFIG,
        ) from None
    return chosen.namespace, chosen.note


def _load_kubeconfig(place: Place, configuration: Configuration) -> tuple[str, str]:
    from kubernetes.config.kube_config import KubeConfigLoader, KubeConfigMerger

    where = f"kubeconfig {place.kubeconfig}"
    try:
        merged = KubeConfigMerger(place.kubeconfig).config
        contexts = {str(node.value["name"]): node.value.get("context") or {} for node in merged.value["contexts"]}
        current = str(merged.value.get("current-context") or "")
    except Exception as error:
        raise ConfigError(
            f"{where}: cannot be read: {_told(error)}; expected YAML with clusters, users and contexts",
            reason=Reason.INVALID_SYNTAX,
        ) from error
    chosen = place.context or current
    if chosen not in contexts:
        named = "setting context" if place.context else "current-context"
        known = ", ".join(contexts) or "none"
        hint = did_you_mean(chosen, contexts) or f"contexts there: {known}"
        raise ConfigError(
            f"{where}: {named}: found {chosen!r}, expected the name of a context ({hint})",
            reason=Reason.INVALID_VALUE,
        )
    try:
        loader = KubeConfigLoader(config_dict=merged, config_base_path=None, active_context=chosen)
        loader.load_and_set(configuration)
    except Exception as error:
        raise ConfigError(f"{where}: context {chosen}: {_told(error)}", reason=Reason.INVALID_VALUE) from error
    context = contexts[chosen]
    if not configuration.host:
        raise ConfigError(
            f"{where}: cluster {context.get('cluster')!r} has no server, expected its https:// address",
            reason=Reason.MISSING_FIELD,
        )
    user = context.get("user")
    note = f"user {user!r} of {where}" if user else f"no user in context {chosen} of {where}"
    return str(context.get("namespace") or ""), note


def _told(error: Exception) -> str:
    """Return an error of the official client in few words, and without the text that it quotes of a file."""
    import yaml

    if isinstance(error, yaml.MarkedYAMLError):
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        return f"no YAML: {error.problem or 'bad syntax'}{line}"
    from kubernetes.config.config_exception import ConfigException

    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}" if error.filename else error.strerror.lower()
    if isinstance(error, ConfigException):
        return str(error).splitlines()[0].removesuffix(".")[:300] if str(error) else "wrong"
    return f"not of the form of a kubeconfig ({type(error).__name__})"
