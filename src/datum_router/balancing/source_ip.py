"""source-ip: consistent hashing on the client's address."""

from __future__ import annotations

from datum_router.balancing.maglev import Maglev


class SourceIp(Maglev):  # the same algorithm; what is hashed is decided by `hashkey`
    """Send a client to the same endpoint as long as it is usable."""

    __slots__ = ()
