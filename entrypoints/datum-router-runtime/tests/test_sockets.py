import socket

import pytest

from datum_router.errors import ConfigError
from datum_router.model.listener import Listener
from datum_router_runtime.sockets import bind_group


def test_each_worker_gets_a_socket_of_its_own_on_one_port() -> None:
    group = bind_group(Listener(name="plain", host="127.0.0.1", port=0), 3)
    try:
        addresses = {sock.getsockname() for sock in group.sockets}
        assert addresses == {group.address}
        assert len({sock.fileno() for sock in group.sockets}) == 3
        assert group.address[1] > 0
    finally:
        group.close()


def test_a_port_that_another_gateway_uses_is_refused_although_reuseport_would_share_it() -> None:
    first = bind_group(Listener(name="plain", host="127.0.0.1", port=0), 1)
    try:
        with pytest.raises(ConfigError, match="is in use by another process; stop it or choose another port"):
            bind_group(Listener(name="plain", host="127.0.0.1", port=first.address[1]), 1)
    finally:
        first.close()


def test_a_foreign_address_is_explained() -> None:
    with pytest.raises(ConfigError, match="is not an address of this machine"):
        bind_group(Listener(name="plain", host="192.0.2.1", port=0), 1)


def test_a_queued_connection_survives_as_long_as_one_copy_is_open() -> None:
    group = bind_group(Listener(name="plain", host="127.0.0.1", port=0), 1)
    copy = group.sockets[0].dup()
    copy.setblocking(True)
    with socket.create_connection(group.address) as client, copy:
        group.close()
        accepted, _ = copy.accept()
        with accepted:
            accepted.sendall(b"hello")
            assert client.recv(5) == b"hello"
