"""uvicorn's HTTP/1.1 with a bound on what it collects beside requests and their bodies.

`uvicorn --http shared.web.http_protocol:BoundedProtocol`. uvicorn keeps a head in memory until it
is complete, and what stands behind a chunked body for ever, however long that may be, and waits
for either without end; exact limits, with a proper answer, are those of `shared.web.limits`.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shared.settings import get_settings
from shared.web.limits import MAX_HEAD_BYTES

TOO_LARGE = b"431 Request Header Fields Too Large"
TOO_SLOW = b"408 Request Timeout"
MAX_SILENT_BYTES = 2 * MAX_HEAD_BYTES
"""Most bytes that may arrive while no head, piece of a body or end of a message comes of them."""


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose bytes lead to nothing, or whose head takes too long. Takes no
    trailers."""

    in_head = False
    gave = False
    silent_bytes = 0
    head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.in_head = True
        if self.head_timer is None:  # not the first request of its connection
            self._start_head_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Behind a body it is a trailer, which uvicorn would put among the headers.
        if self.in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_head_timer()
        self.in_head, self.gave = False, True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.gave = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.gave = True
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        self.gave = False
        super().data_received(data)
        self.silent_bytes = 0 if self.gave else self.silent_bytes + len(data)
        if self.silent_bytes > MAX_SILENT_BYTES:
            self._refuse(TOO_LARGE)

    def _start_head_timer(self) -> None:
        self.head_timer = self.loop.call_later(
            get_settings().head_timeout_s, self._refuse, TOO_SLOW
        )

    def _stop_head_timer(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def _refuse(self, status: bytes) -> None:
        # An answer may be written only between the answers to requests before this one.
        if self.in_head and (self.cycle is None or self.cycle.response_complete):
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\n\r\n")
        self.transport.close()
