"""uvicorn's HTTP/1.1 with a bound on what it collects before a request reaches the application.

`uvicorn --http shared.http_protocol:BoundedProtocol`. Its parser keeps a head in memory until it is
complete, however long that may be; exact limits, with a proper answer, are those of
`shared.request_limits`.
"""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shared.request_limits import MAX_HEAD_BYTES

REFUSAL = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n"


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose request head goes on for more than twice what is allowed."""

    in_head = False
    head_bytes = 0

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.in_head, self.head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self.in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.in_head:
            self.head_bytes += len(data)
            if self.head_bytes > 2 * MAX_HEAD_BYTES:
                self.transport.write(REFUSAL)
                self.transport.close()
