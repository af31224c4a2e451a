"""Ports are ours from the moment they are chosen."""

import socket
from contextlib import closing

import pytest

from services.cli.errors import CliError
from services.cli.machine.ports import LOOPBACK, listen, listen_public, port_of, reserve


def test_a_taken_port_that_was_asked_for_is_an_error_that_names_it() -> None:
    with closing(listen()) as taken:
        port = port_of(taken)
        with pytest.raises(CliError, match=f"port {port} .*in use.*--port"):
            listen_public(port, default=port, host=LOOPBACK)


def test_another_port_is_chosen_when_the_default_one_is_taken() -> None:
    with (
        closing(listen()) as taken,
        closing(listen_public(None, default=port_of(taken), host=LOOPBACK)) as other,
    ):
        assert port_of(other) != port_of(taken)


def test_a_reserved_port_refuses_until_its_server_listens() -> None:
    with closing(reserve()) as held, closing(socket.socket()) as server:
        address = (LOOPBACK, port_of(held))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen()
        socket.create_connection(address).close()


def test_reserved_ports_differ() -> None:
    held = [reserve() for _ in range(200)]
    try:
        assert len({port_of(sock) for sock in held}) == len(held)
    finally:
        for sock in held:
            sock.close()
