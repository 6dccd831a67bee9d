"""The exception tree: one root, few leaves, each with a `reason` from `datum_router.reasons`.

Expected negatives on the request path are values (`NoRoute` returned by `match`), not exceptions; what stands
here is for misuse, for bytes that break a protocol, and for configuration that cannot be used.
"""

from __future__ import annotations

from datum_router.reasons import Reason


class DatumRouterError(Exception):
    """Root of every exception this project raises on purpose."""

    __slots__ = ("reason",)

    def __init__(self, message: str, *, reason: Reason = Reason.INTERNAL) -> None:
        super().__init__(message)
        self.reason = reason


class ConfigError(DatumRouterError):
    """Report settings or manifests that cannot be used at all; the CLI exits with 2."""


class PluginError(DatumRouterError):
    """Root of errors that name a plugin."""


class PluginLoadError(PluginError):
    """Report a plugin that cannot be loaded: wrong API version, unknown hook, name clash, import failure."""


class PluginContractError(PluginError):
    """Report a plugin that broke the protocol its hook promises."""


class PluginDisabled(PluginContractError):
    """Report a part of a plugin that is not asked any more, since it has broken its promises too often."""

    __slots__ = ()

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.PLUGIN_DISABLED)


class ProtocolError(DatumRouterError):
    """Root of wire errors.

    Args:
        status_hint: The HTTP status a server role should answer with if it still can.
        error_code: The HTTP/2 error code (RFC 9113 section 7) for the same fault.
    """

    __slots__ = ("error_code", "status_hint")

    def __init__(
        self, message: str, *, reason: Reason = Reason.INTERNAL, status_hint: int = 400, error_code: int = 1
    ) -> None:
        super().__init__(message, reason=reason)
        self.status_hint = status_hint
        self.error_code = error_code


class LocalProtocolError(ProtocolError):
    """Report that our own code misused an engine (a bug of ours, never of the peer)."""


class RemoteProtocolError(ProtocolError):
    """Report that the peer broke the protocol."""


class UpstreamError(DatumRouterError):
    """Report an attempt that failed at an upstream.

    Args:
        status_hint: 502, 503 or 504, what the client is told if no other attempt follows.
        is_unprocessed: True if the upstream provably did not act on the request (RFC 9110 section 9.2.2).
    """

    __slots__ = ("is_unprocessed", "status_hint")

    def __init__(self, message: str, *, reason: Reason, status_hint: int = 502, is_unprocessed: bool = False) -> None:
        super().__init__(message, reason=reason)
        self.status_hint = status_hint
        self.is_unprocessed = is_unprocessed


class SourceError(DatumRouterError):
    """Report a source that failed; the runtime retries with backoff and keeps the last good state."""


class TerminalSourceError(SourceError):
    """Report a source failure that retrying cannot mend; it is logged and counted, not retried."""


class ClusterError(DatumRouterError):
    """Report a call to the cluster's API that failed; trying again later may help.

    Args:
        status: HTTP status of the API's answer, 0 if there was none.
        retry_after_s: Seconds after which the API asked to be asked again, 0 if it did not say.
    """

    __slots__ = ("retry_after_s", "status")

    def __init__(
        self, message: str, *, reason: Reason = Reason.SOURCE_FAILED, status: int = 0, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(message, reason=reason)
        self.status = status
        self.retry_after_s = retry_after_s


class ClusterUnavailable(ClusterError):
    """Report an API that did not answer, or only with 5xx or 429."""


class ClusterConflict(ClusterError):
    """Report a write that lost against another one (409), or that another field manager stands in the way of."""


class ClusterNotFound(ClusterError):
    """Report an object, or a kind, that is not there (404)."""


class ClusterForbidden(ClusterError):
    """Report a right that this process does not have (401, 403); the message names verb and resource."""


class ClusterRejected(ClusterError):
    """Report an object that the API refuses (400, 422).

    Args:
        causes: Field and message of each thing that is wrong with it.
    """

    __slots__ = ("causes",)

    def __init__(self, message: str, *, status: int, causes: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message, reason=Reason.INVALID_VALUE, status=status)
        self.causes = causes
