"""Server certificates: SSL contexts of a listener, chosen by server name, replaced as a whole.

Theory of operation
===================
Each TLS binding has its own context. In front of them stands one without a certificate: every handshake begins there,
and its SNI callback moves the connection to the context of the exact name, else of the wildcard one label up, else to
the default, which is the first binding (RFC 6066 section 3, Gateway API listener matching). Without any of them the
handshake ends with `unrecognized_name`.

An update builds a new table and puts it in place with one assignment: handshakes under way keep theirs. Bindings whose
PEM text has not changed keep their context. A binding that cannot be used (bad PEM, key of another certificate) keeps
the context which served the same names before, if there is one, and is reported; the other bindings are not affected.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import msgspec

from datum_router.model.listener import ClientAuth, Listener, TlsBinding
from datum_router_proxy.certificate import explain, load_pair, serving
from datum_router_proxy.client_identity import BindingContext, ask_clients
from datum_router_proxy.tls_channel import NamedSSLObject


class BindingProblem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a binding cannot be used.

    Attributes:
        index: Position in `listener.tls`.
        message: Never holds PEM text.
        is_stale: An older certificate for the same names stays in force.
    """

    index: int
    message: str
    is_stale: bool


class _Table:
    """The contexts of one listener version; immutable once built."""

    __slots__ = ("asks_clients", "by_binding", "default", "exact", "front", "wildcard")

    def __init__(self, front: ssl.SSLContext) -> None:
        self.front = front
        self.asks_clients = False
        self.by_binding: dict[TlsBinding, BindingContext] = {}
        self.default: BindingContext | None = None
        self.exact: dict[str, BindingContext] = {}
        self.wildcard: dict[str, BindingContext] = {}

    def choose(self, name: str | None) -> BindingContext | None:
        if name is None:
            return self.default
        found = self.exact.get(name)
        if found is None:
            _, _, parent = name.partition(".")
            found = self.wildcard.get(parent)
        return found or self.default


class ServerTls:
    """The TLS side of one listener.

    Attributes:
        problems: What the last update could not use.
    """

    __slots__ = ("_settings", "_table", "problems")

    def __init__(self, listener: Listener) -> None:
        self._table: _Table | None = None
        self._settings: tuple[str, tuple[str, ...]] = ("", ())
        self.problems: tuple[BindingProblem, ...] = ()
        self.update(listener)

    @property
    def is_usable(self) -> bool:
        """True if at least one certificate can be served."""
        return self._table is not None and bool(self._table.by_binding)

    @property
    def asks_clients(self) -> bool:
        """True if clients of some host are asked for certificates."""
        return self._table is not None and self._table.asks_clients

    def policy_for(self, name: str | None) -> ClientAuth | None:
        """Return what clients that ask for this server name are held to from now on; None = nothing."""
        context = self._table.choose(name) if self._table is not None else None
        return None if context is None else context.policy

    @property
    def context(self) -> ssl.SSLContext:
        """The context to begin a handshake with; choose it anew for each connection."""
        table = self._table
        if table is None:
            raise AssertionError("context: asked before the first update")
        return table.front

    def update(self, listener: Listener) -> tuple[BindingProblem, ...]:
        """Take over the listener's bindings for new handshakes; return the ones that cannot be used.

        Loading a key takes about a millisecond; call it between requests, not per request.
        """
        old = self._table
        settings = (listener.min_tls_version, listener.alpn)
        known: Mapping[TlsBinding, BindingContext] = old.by_binding if old is not None else {}
        reusable = known if settings == self._settings else {}
        table = _Table(_base_context(listener))
        problems: list[BindingProblem] = []
        for index, binding in enumerate(listener.tls):
            effective = binding
            context = reusable.get(binding)
            if context is None:
                try:
                    context = _binding_context(listener, binding)
                except (ssl.SSLError, ValueError, OSError) as exc:
                    before = next((one for one in known if _stands_for(one, binding)), None)
                    problems.append(
                        BindingProblem(
                            index=index,
                            message=f"listener {listener.name}: tls[{index}]: {explain(exc)}",
                            is_stale=before is not None,
                        )
                    )
                    if before is None:
                        continue
                    effective, context = before, known[before]
            table.by_binding[effective] = context
            table.asks_clients |= context.asks_clients
            if index == 0:
                table.default = context
            for hostname in binding.hostnames:
                name = canonical_name(hostname)
                if name.startswith("*."):
                    table.wildcard.setdefault(name[2:], context)
                else:
                    table.exact.setdefault(name, context)
        _install_chooser(table)
        self._table = table
        self._settings = settings
        self.problems = tuple(problems)
        return self.problems


def _stands_for(old: TlsBinding, new: TlsBinding) -> bool:
    """Tell whether an older binding may serve in place of one that cannot be used: never one that asks for less."""
    return old.hostnames == new.hostnames and old.client_auth == new.client_auth


def canonical_name(name: str) -> str:
    """Return a host name in lower case and without the trailing dot."""
    return name.lower().rstrip(".")


def _install_chooser(table: _Table) -> None:
    def choose(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _front: ssl.SSLContext) -> int | None:
        # An exception here would be printed by the interpreter; nothing below can raise on any name.
        wanted = canonical_name(name) if name else None
        if isinstance(connection, NamedSSLObject):
            connection.requested_name = wanted
        context = table.choose(wanted)
        if context is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        if context.asks_clients:
            if isinstance(connection, NamedSSLObject):
                connection.successor = context
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME  # unless the handshake is begun anew, see `client_identity`
        connection.context = context
        return None

    table.front.sni_callback = choose


def _base_context(listener: Listener) -> BindingContext:
    context = serving(BindingContext(ssl.PROTOCOL_TLS_SERVER), listener.min_tls_version)
    context.sslobject_class = NamedSSLObject
    if listener.alpn:
        context.set_alpn_protocols(list(listener.alpn))
    return context


def _binding_context(listener: Listener, binding: TlsBinding) -> BindingContext:
    context = _base_context(listener)
    load_pair(context, binding.cert_pem, binding.key_pem)
    if binding.client_auth is not None:
        ask_clients(context, binding.client_auth, binding.cert_pem)
    return context
