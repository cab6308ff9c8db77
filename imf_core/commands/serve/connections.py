"""Limits of a connection that uvicorn has no setting for: how many there may be, how long a request may take to arrive, and how
long its header may be.

uvicorn closes a connection that stays idle after an answer (`timeout_keep_alive`). One that never asks, or that sends its
request byte by byte, it holds for ever. Its parser in C, httptools, is faster than the one in Python, and takes headers of any
length.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from httptools import HttpParserError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of connections.

    Args:
        connections: most at a time; more are refused.
        seconds: for a request to arrive as a whole, and for a connection between two requests.
        header: most bytes of a request's header.
    """

    connections: int = 512
    seconds: int = 30
    header: int = 16 * 1024


def limited(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """uvicorn's protocol with these limits."""

    class Connection(HttpToolsProtocol):
        deadline: asyncio.TimerHandle | None = None
        unfinished = 0  # bytes of a header whose end has not come, but for those that came with a part of another request

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                self._refuse(
                    "503 Service Unavailable", f"{limits.connections:,} connections are open",
                    "try again later, close those that are not used, or start with --max-connections",
                )
            else:
                self._watch()

        def data_received(self, data: bytes) -> None:
            self.unfinished += len(data)
            super().data_received(data)
            if self.unfinished > limits.header and not self.transport.is_closing():
                self.send_400_response("the header is too long")
            self._watch()

        def on_headers_complete(self) -> None:
            self.unfinished = 0
            if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > limits.header:
                raise HttpParserError("the header is too long")
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self.unfinished = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self.unfinished = 0
            super().on_message_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch(idle=True)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._clear()

        def send_400_response(self, msg: str) -> None:
            self._refuse("400 Bad Request", "this is no HTTP request, or its header is too long", (
                f"send HTTP/1.1 with a header of at most {limits.header:,} bytes"
            ))

        def _watch(self, idle: bool = False) -> None:
            """Keep the deadline while a request is on its way; where none is, uvicorn's own runs, or the answer is awaited."""
            if self.transport.is_closing():
                return
            begun = self.cycle is not None and not self.cycle.response_complete
            on_its_way = self.cycle.more_body if begun else not idle or self.cycle.more_body
            if not on_its_way:
                self._clear()
            elif self.deadline is None:
                self.deadline = self.loop.call_later(limits.seconds, self._late)

        def _clear(self) -> None:
            if self.deadline is not None:
                self.deadline.cancel()
                self.deadline = None

        def _late(self) -> None:
            self._refuse(
                "408 Request Timeout", f"no whole request came within {limits.seconds:,} s",
                "send it at once, or start with --timeout",
            )

        def _refuse(self, status: str, problem: str, remedy: str) -> None:
            self._clear()
            body = json.dumps({"error": problem, "what_to_do": remedy}).encode("ascii")
            head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close"
            self.transport.write(head.encode("ascii") + b"\r\n\r\n" + body)
            self.transport.close()

    return Connection
