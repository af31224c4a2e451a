"""Ports that are ours for as long as this process lives.

Asking the kernel for a free port and closing it again lets another checkout take it before the
server starts, so the sockets are kept open instead, in one of two ways.
"""

import socket

from services.cli.errors import CliError

LOOPBACK = "127.0.0.1"


def listen(port: int = 0, host: str = LOOPBACK) -> socket.socket:
    """A listening socket, to be inherited by the server (`uvicorn --fd`).

    It stays open here too: while a server restarts, its callers wait in the backlog instead of
    being refused. Port 0 takes any free one. Raises `OSError` where the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    try:
        # Or a port stays taken for a minute after a server on it has stopped.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit this. A server given a socket does not set it, and 40 ms are lost at
        # each of an answer's writes but the first.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((host, port))
        sock.listen(2048)
    except OSError:
        sock.close()
        raise
    return sock


def listen_public(asked: int | None, default: int, host: str) -> socket.socket:
    """The port that was asked for, else the default one, else any free one.

    Raises:
        CliError: the port that was asked for is taken or not allowed.
    """
    if asked is not None:
        try:
            return listen(asked, host)
        except OSError as error:
            raise CliError(
                f"port {asked} on {host} cannot be used: {error.strerror or error}. "
                "Give another one with --port, or leave it out to have one chosen."
            ) from None
    try:
        return listen(default, host)
    except OSError:
        return listen(0, host)


def reserve() -> socket.socket:
    """A bound socket that keeps its port for a server we start later, as an engine.

    It never listens, so connecting is refused until that server does. A server that sets
    SO_REUSEADDR (all common ones) can bind the port beside it. Bound first and marked afterwards:
    so the kernel gives a port that no other reservation holds.
    """
    sock = socket.socket()
    sock.bind((LOOPBACK, 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return sock


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port
