"""uvicorn's HTTP/1.1 with a bound on what it collects beside requests and their bodies.

`uvicorn --http shared.web.http_protocol:BoundedProtocol`. Its parser keeps a head in memory
until it is complete, and what stands behind a chunked body for ever, however long that may be;
exact limits, with a proper answer, are those of `shared.web.limits`.
"""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from shared.web.limits import MAX_HEAD_BYTES

REFUSAL = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n"
MAX_SILENT_BYTES = 2 * MAX_HEAD_BYTES
"""That may arrive while no head, piece of a body or end of a message comes of them."""


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose bytes lead to nothing, and takes no trailers."""

    in_head = False
    gave = False
    silent_bytes = 0

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        # Behind a body it is a trailer, which uvicorn would put among the headers.
        if self.in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
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
            if self.in_head:
                self.transport.write(REFUSAL)
            self.transport.close()
