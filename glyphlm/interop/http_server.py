"""uvicorn with time limits: slow clients are disconnected, and a signal ends the server within seconds."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from glyphlm.interop.generation_queue import Refusal, Worker
from glyphlm.interop.settings import Limits

HEADER_BYTES = 1 << 14  # of the request line and all headers
SHUTDOWN_SECONDS = 2  # after which connections that are still open are cut


def limited_protocol(limits: Limits) -> type[H11Protocol]:
    """HTTP on one connection, with time limits; uvicorn itself never closes a connection with an unfinished request."""
    whole = limits.request_seconds + 2 * limits.client_seconds  # body, answer, taking the answer

    class LimitedProtocol(H11Protocol):
        _clock: asyncio.TimerHandle | None = None

        def _allow(self, seconds: float) -> None:
            if self._clock is not None:
                self._clock.cancel()
            self._clock = self.loop.call_later(seconds, self.transport.abort)

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._allow(limits.client_seconds)

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self.cycle is not before:
                self._allow(whole)

        def on_response_complete(self) -> None:
            self._allow(limits.client_seconds)
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._clock is not None:
                self._clock.cancel()

    return LimitedProtocol


class Server(uvicorn.Server):
    """Prints when it listens; on shutdown refuses pending requests."""

    def __init__(self, app: Starlette, limits: Limits, worker: Worker, ready: Callable[[], None]):
        super().__init__(uvicorn.Config(
            app, http=limited_protocol(limits), ws="none", lifespan="off", log_level="error", access_log=False,
            proxy_headers=False, server_header=False, limit_concurrency=limits.max_connections,
            timeout_keep_alive=max(1, round(limits.client_seconds)), timeout_graceful_shutdown=2 * SHUTDOWN_SECONDS,
            h11_max_incomplete_event_size=HEADER_BYTES,
        ))
        self._worker, self._ready = worker, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End jobs at their next token, then connections."""
        self._worker.refuse_all(Refusal(503, "the server is shutting down"))
        asyncio.get_running_loop().call_later(SHUTDOWN_SECONDS, self._cut)
        await super().shutdown(sockets)

    def _cut(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()
