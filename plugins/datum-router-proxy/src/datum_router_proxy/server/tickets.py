"""Keys of TLS session tickets that all workers of a gateway share, so that each one resumes what another began.

Theory of operation
===================
Workers are processes; without more each has random ticket keys of its own, and a client that comes back meets another
one more often than not, and shakes hands in full. The supervisor makes a secret, hands it to its workers, and replaces
it from time to time; the secret before is still good for tickets made by it. What OpenSSL gets are keys derived from
it for each way of speaking TLS (`TlsBinding.identity`), so that a session of one host resumes nothing at another that
may ask more of its clients.

Python has no call for ticket keys, so OpenSSL's is called by ctypes (SSL_CTX_ctrl, SSL_CTRL_SET_TLSEXT_TICKET_KEYS).
That needs the pointer within the context object, which is looked for only in interpreters whose layout is known and is
believed only if OpenSSL, asked by it, gives the options that Python does. Otherwise everything works as before, with
keys of each worker's own. Secrets and keys are in memory only.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import hmac
import ssl
import sys
from collections.abc import Callable

KEY_BYTES = 80
"""Name (16), HMAC key (32) and AES key (32), as OpenSSL 1.1.1 and 3 have them."""
NAME_BYTES = 16

_SET_TICKET_KEYS = 59
_GET_TICKET_KEYS = 58
_LAYOUTS = frozenset({(3, 11), (3, 12), (3, 13), (3, 14)})
"""CPython whose `PySSLContext` begins with the object's head, and then `SSL_CTX *ctx` (Modules/_ssl.c)."""
_LABEL = b"datum-router tls ticket key 1\0"


def derive_key(secret: bytes, identity: str) -> bytes:
    """Return the ticket key of a way of speaking TLS (HKDF-Expand, RFC 5869 section 2.3)."""
    info = _LABEL + identity.encode("utf-8")
    key, block, counter = b"", b"", 1
    while len(key) < KEY_BYTES:
        block = hmac.digest(secret, block + info + bytes((counter,)), hashlib.sha256)
        key += block
        counter += 1
    return key[:KEY_BYTES]


def install_key(context: ssl.SSLContext, key: bytes) -> bool:
    """Have a context make and take tickets by `key`; False if this interpreter has no way to."""
    call = _openssl()
    if call is None:
        return False
    pointer = _pointer(context)
    if pointer is None:
        return False
    return bool(call(pointer, _SET_TICKET_KEYS, KEY_BYTES, key))


@functools.cache
def can_share() -> bool:
    """Tell whether ticket keys can be set in this process."""
    return install_key(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), bytes(KEY_BYTES))


@functools.cache
def _openssl() -> Callable[[int, int, int, bytes | None], int] | None:
    """Return SSL_CTX_ctrl of the library that Python's `ssl` uses, None if it is not to be had."""
    if sys.implementation.name != "cpython" or sys.version_info[:2] not in _LAYOUTS or hasattr(sys, "gettotalrefcount"):
        return None
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return None  # objects have another head there
    library = _library()
    if library is None:
        return None
    ctrl = library.SSL_CTX_ctrl
    ctrl.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p)
    ctrl.restype = ctypes.c_long

    def call(pointer: int, command: int, size: int, data: bytes | None) -> int:
        return int(ctrl(pointer, command, size, data))

    return call


@functools.cache
def _library() -> ctypes.CDLL | None:
    # The module's own file, since a look-up through it finds the very library that it was linked with.
    path = getattr(sys.modules.get("_ssl"), "__file__", None)
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(path)
        library.SSL_CTX_get_options.argtypes = (ctypes.c_void_p,)
        library.SSL_CTX_get_options.restype = ctypes.c_uint64
        assert library.SSL_CTX_ctrl is not None
        return library
    return None


def _pointer(context: ssl.SSLContext) -> int | None:
    """Return the SSL_CTX of a context, None if what stands in its place does not behave like one."""
    library = _library()
    if library is None:
        return None
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__).value
    if not pointer:
        return None
    return (
        pointer if int(library.SSL_CTX_get_options(pointer)) == int(context.options) & 0xFFFF_FFFF_FFFF_FFFF else None
    )
