"""Server certificates: SSL contexts of a listener, chosen by server name, replaced as a whole.

Theory of operation
===================
Each TLS binding has its own context, with its own lowest version, suites and ALPN. Which one speaks with a client is
decided before OpenSSL sees a byte, from the ClientHello (`wire.client_hello`): the context of the exact name, else of
the nearest wildcard above it, else the default, which is the first binding (RFC 6066 section 3, Gateway API listener
matching). Were it changed in OpenSSL's callback, the versions, the keys of tickets, and whether a client is asked for
a certificate, would be those of the context that it began with.
A listener that requires a known name has no default: such handshakes end with `unrecognized_name`. What is no
ClientHello goes to the default, whose OpenSSL says what is wrong. The callback is still there to compare: should
OpenSSL read another name than we did, the handshake fails.

An update builds a new table and puts it in place with one assignment: handshakes under way keep theirs. Bindings whose
PEM text and settings have not changed keep their context. A binding that cannot be used (bad PEM, key of another
certificate) keeps the context which served the same names before, if there is one, and is reported; the other bindings
are not affected.

Tickets (see `tickets`): a binding has a context for each secret that is in force, the newest first. A client comes back
with the name of the key that its ticket was made with, and meets the context that has it; new ones get the newest.
A session that is resumed is not verified anew, so keys are also those of what was asked of clients: a ticket that was
made without a certificate, or for one by other CAs, lists or names, resumes nothing where another is asked for.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Mapping, Sequence

import msgspec

from datum_router.model.listener import ClientAuth, Listener, TlsBinding
from datum_router_proxy.certificate import explain, load_pair, serving
from datum_router_proxy.channel import ChannelError, PlainChannel
from datum_router_proxy.client_identity import BindingContext, ask_clients
from datum_router_proxy.loop import park
from datum_router_proxy.server.tickets import NAME_BYTES, derive_key, install_key
from datum_router_proxy.tls_channel import NamedSSLObject, TlsChannel
from datum_router_proxy.wire.client_hello import MAX_HELLO_BYTES, ClientHello, NotTls, read_client_hello

UNRECOGNIZED_NAME = b"\x15\x03\x01\x00\x02\x02\x70"
"""A record with the fatal alert `unrecognized_name` (RFC 6066 section 3)."""


class BindingProblem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a binding cannot be used.

    Attributes:
        index: Position in `listener.tls`.
        message: Never holds PEM text.
        is_stale: An older certificate for the same names stays in force.
        owner: The VPCIngress that it is of.
    """

    index: int
    message: str
    is_stale: bool
    owner: str = ""


class _Served:
    """A binding as it is served: a context for each ticket secret, the newest first, and the names of their keys."""

    __slots__ = ("binding", "contexts", "identity", "key_names")

    def __init__(self, binding: TlsBinding, contexts: list[BindingContext]) -> None:
        self.binding = binding
        self.identity = binding.identity
        self.contexts = contexts
        self.key_names: list[bytes] = []

    def serving_as(self, identity: str) -> _Served:
        """Return the same for connections that are to count as opened by another identity: that of its successor."""
        same = _Served(self.binding, self.contexts)
        same.identity = identity
        same.key_names = self.key_names
        return same

    def context(self, ticket_name: bytes) -> BindingContext:
        """Return the context for a client that has a ticket of that name, or none (empty)."""
        if ticket_name and ticket_name in self.key_names:
            return self.contexts[self.key_names.index(ticket_name)]
        return self.contexts[0]


class _Table:
    """What is served in one listener version; immutable once built."""

    __slots__ = ("by_binding", "default", "exact", "wildcard")

    def __init__(self) -> None:
        self.by_binding: dict[TlsBinding, _Served] = {}
        self.default: _Served | None = None
        self.exact: dict[str, _Served] = {}
        self.wildcard: dict[str, _Served] = {}

    def choose(self, name: str) -> _Served | None:
        found = self.exact.get(name)
        if found is None and self.wildcard:
            _, _, parent = name.partition(".")
            while parent and found is None:
                found = self.wildcard.get(parent)
                _, _, parent = parent.partition(".")
        return found or self.default


class ServerTls:
    """The TLS side of one listener.

    Args:
        secrets: For the keys of session tickets, the newest first; none: OpenSSL makes keys of its own.

    Attributes:
        problems: What the last update could not use.
    """

    __slots__ = ("_listener", "_secrets", "_table", "problems")

    def __init__(self, listener: Listener, secrets: Sequence[bytes] = ()) -> None:
        self._table = _Table()
        self._listener = listener
        self._secrets: tuple[bytes, ...] = tuple(secrets)
        self.problems: tuple[BindingProblem, ...] = ()
        self.update(listener)

    @property
    def asks_clients(self) -> bool:
        """True if clients of some host are asked for certificates."""
        return any(binding.client_auth is not None for binding in self._table.by_binding)

    def policy_for(self, name: str | None) -> ClientAuth | None:
        """Return what clients that ask for this server name are held to from now on; None = nothing."""
        served = self._table.choose(name or "")
        return None if served is None else served.binding.client_auth

    @property
    def is_usable(self) -> bool:
        """True if at least one certificate can be served."""
        return bool(self._table.by_binding)

    def choose(self, hello: ClientHello | NotTls) -> tuple[ssl.SSLContext, str] | None:
        """Return the context to speak with a client and the identity of its binding; None: `unrecognized_name`."""
        if isinstance(hello, NotTls):
            served, ticket = self._table.default, b""
        else:
            served, ticket = self._table.choose(hello.server_name), hello.ticket_name
        return None if served is None else (served.context(ticket), served.identity)

    def set_secrets(self, secrets: Sequence[bytes]) -> None:
        """Make tickets by the first of these secrets from now on, and take those made by the others."""
        self._secrets = tuple(secrets)
        for served in self._table.by_binding.values():
            self._install(served)

    def update(self, listener: Listener) -> tuple[BindingProblem, ...]:
        """Take over the listener's bindings for new handshakes; return the ones that cannot be used.

        Loading a key takes about a millisecond; call it between requests, not per request.
        """
        known: Mapping[TlsBinding, _Served] = self._table.by_binding
        is_same = (listener.min_tls_version, listener.alpn) == (self._listener.min_tls_version, self._listener.alpn)
        self._listener = listener
        table = _Table()
        problems: list[BindingProblem] = []
        for index, binding in enumerate(listener.tls):
            served = known.get(binding) if is_same else None
            if served is None:
                try:
                    served = _Served(binding, [_binding_context(listener, binding)])
                    self._install(served)
                except (ssl.SSLError, ValueError, OSError) as exc:
                    before = next((one for one in known if _stands_for(one, binding)), None)
                    problems.append(
                        BindingProblem(
                            index=index,
                            message=f"listener {listener.name}: tls[{index}]: {explain(exc)}",
                            is_stale=before is not None,
                            owner=binding.owner,
                        )
                    )
                    if before is None:
                        continue
                    served = known[before].serving_as(binding.identity)
            table.by_binding[served.binding] = served
            if index == 0 and not listener.is_sni_required:
                table.default = served
            for hostname in binding.hostnames:
                name = canonical_name(hostname)
                if name.startswith("*."):
                    table.wildcard.setdefault(name[2:], served)
                else:
                    table.exact.setdefault(name, served)
        self._table = table
        self.problems = tuple(problems)
        return self.problems

    def _install(self, served: _Served) -> None:
        """Give a binding's contexts their keys; without secrets, or a way to, OpenSSL's own stay."""
        names: list[bytes] = []
        label = ticket_label(served.binding)
        for index, secret in enumerate(self._secrets):
            if index == len(served.contexts):
                served.contexts.append(_binding_context(self._listener, served.binding))
            key = derive_key(secret, label)
            if not install_key(served.contexts[index], key):
                del served.contexts[1:]
                names = []
                break
            names.append(key[:NAME_BYTES])
        served.key_names = names


def _stands_for(old: TlsBinding, new: TlsBinding) -> bool:
    """Tell whether an older binding may serve in place of one that cannot be used: never one that asks for less."""
    return old.hostnames == new.hostnames and old.client_auth == new.client_auth


def ticket_label(binding: TlsBinding) -> str:
    """Return what bindings must have in common for one to resume the sessions of the other.

    Their identity, and all that is asked of clients, with the CAs and lists themselves and not only where they are.
    """
    identity = binding.identity or " ".join(binding.hostnames)
    if binding.client_auth is None:
        return identity
    return f"{identity}\0{hashlib.sha256(msgspec.json.encode(binding.client_auth)).hexdigest()}"


async def read_hello(raw: PlainChannel) -> ClientHello | NotTls:
    """Return what a client's hello says, and leave all of it to be read; the calling task must be the channel's.

    Raises:
        ChannelError: The client went away before it had said it.
        DeadlineExpired, TaskCancelled: As `park`.
    """
    while True:
        data = raw.peek(MAX_HELLO_BYTES)
        if data:
            hello = read_client_hello(data)
            if hello is not None:
                return hello
        if data == b"" or raw.hangup:
            raise ChannelError("ended before its ClientHello was whole", reason=raw.reset_reason)
        raw.expect_more()
        await park()


async def accept_tls(raw: PlainChannel, tls: ServerTls) -> tuple[TlsChannel, str] | None:
    """Shake hands with a client; return the channel and the identity of its binding, None if its name is refused.

    Raises:
        ssl.SSLError: The handshake failed; an alert has been sent. The caller closes.
        ChannelError, DeadlineExpired, TaskCancelled: As `TlsChannel.handshake`.
    """
    hello = await read_hello(raw)
    chosen = tls.choose(hello)
    if chosen is None:
        raw.write(UNRECOGNIZED_NAME)
        return None
    context, identity = chosen
    channel = TlsChannel(raw, context, server_side=True)
    channel.expect_name("" if isinstance(hello, NotTls) else hello.server_name)
    await channel.handshake()
    return channel, identity


def canonical_name(name: str) -> str:
    """Return a host name in lower case and without the trailing dot."""
    return name.lower().rstrip(".")


def _compare_name(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> int | None:
    # An exception here would be printed by the interpreter; nothing below can raise on any name.
    read = canonical_name(name) if name else None
    if isinstance(connection, NamedSSLObject):
        if connection.is_name_known and connection.requested_name != read:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        connection.requested_name = read
    return None


def _binding_context(listener: Listener, binding: TlsBinding) -> BindingContext:
    context = serving(BindingContext(ssl.PROTOCOL_TLS_SERVER), binding.min_version or listener.min_tls_version)
    context.sslobject_class = NamedSSLObject
    alpn = binding.alpn or listener.alpn
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if binding.ciphers:
        context.set_ciphers(":".join(binding.ciphers))
    context.sni_callback = _compare_name
    load_pair(context, binding.cert_pem, binding.key_pem)
    if binding.client_auth is not None:
        ask_clients(context, binding.client_auth, binding.cert_pem)
    return context
