"""`imf serve`: answers by name over HTTP, on this machine unless told otherwise."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imf_core.commands.model.graph import DataOption
from imf_core.commands.terminal import terminal
from imf_core.ensemble.ensemble import open_predictor
from imf_core.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from uvicorn import Server

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_BACKLOG = 128  # connections that are accepted at a time, so that they cannot take all descriptors before they are refused
_SECONDS = 30  # time for pending requests when the server is stopped


def serve(
    checkpoint: Annotated[Path, typer.Argument(metavar="FOLDER", help="Checkpoint or ensemble, say results/<study>/best.")],
    host: Annotated[str, typer.Option(help="Address to listen on. There is no authentication.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one and prints it.")] = 8000,
    max_batch: Annotated[int, typer.Option(min=1, help="Questions of one request.")] = 256,
    max_body_kib: Annotated[int, typer.Option(min=1, help="Size of one request, KiB.")] = 256,
    max_k: Annotated[int, typer.Option(min=1, help="Answers to one question.")] = 1000,
    max_connections: Annotated[int, typer.Option(min=1, help="Open connections; more are refused.")] = 512,
    timeout: Annotated[
        int, typer.Option(min=1, max=86400, help="Seconds for a request to arrive, an answer to leave, an idle connection.")
    ] = 30,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="Another name of this machine, or * for any. Repeatable.")
    ] = None,
    data: DataOption = None,
) -> None:
    """Answer questions by name over HTTP: POST /predict; GET /health, /about, /entities?prefix=, /relations.

    Requests that come while the model is busy wait, and are answered together. Ctrl-C or SIGTERM ends it when all are answered.

    Example: imf serve results/<study>/best --port 8000
    """
    # Imported here because they take half a second that no other command needs.
    import torch
    import uvicorn

    from imf_core.commands.serve.connections import ConnectionLimits, limited
    from imf_core.commands.serve.request import Limits
    from imf_core.commands.serve.service import build_app

    hosts = allowed_hosts(host, allow_host or [])
    connections = ConnectionLimits(max_connections, timeout)
    torch.set_num_threads(max(1, torch.get_num_threads() - 1))  # one core is for connections: threads that lack one wait busily
    with listening(host, port, timeout) as listener:
        predictor = open_predictor(checkpoint, data)
        _ = predictor.known  # known facts that are not at hand are missed here, not by the first question
        address = listener.getsockname()
        if warning := exposure(address[0], hosts):
            terminal(stderr=True).print(warning, style="yellow", soft_wrap=True)
        app = build_app(predictor, Limits(max_batch, max_body_kib * 1024, max_k), hosts)
        server = uvicorn.Server(uvicorn.Config(
            app, http=limited(connections), ws="none", loop="asyncio", lifespan="on", log_level="error", access_log=False,
            proxy_headers=False, server_header=False, backlog=_BACKLOG, timeout_graceful_shutdown=_SECONDS,
            timeout_keep_alive=connections.seconds,
        ))
        shown = f"[{address[0]}]" if listener.family == socket.AF_INET6 else address[0]
        with _stopped_by_signals(server):
            terminal().print(f"{checkpoint}: http://{shown}:{address[1]} (Ctrl-C ends it)", soft_wrap=True)
            server.run([listener])
    terminal().print("stopped", soft_wrap=True)


def allowed_hosts(host: str, others: list[str]) -> list[str]:
    """Values of the Host header that are accepted: names of this machine, the given address, and others.

    Raises:
        ConfigError: a pattern is neither `*` nor `*.example.com`.
    """
    for name in others:
        if name != "*" and "*" in name.removeprefix("*."):
            raise ConfigError(
                f"--allow-host {name!r} is no name", remedy="give a host name, *.example.com, or * for any", key="allow-host",
                value=name,
            )
    literal = f"[{host}]" if ":" in host else host
    return list(dict.fromkeys([*_LOOPBACK, literal, *others]))


def exposure(address: str, hosts: list[str]) -> str:
    """The warning for an IP address that other machines can reach; empty for a loopback address."""
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:  # fe80::1%eth0 names its interface
        return ""
    return (
        f"warning: {address} can be reached from other machines and there is no authentication: whoever reaches it may ask. "
        f"It answers to the names {', '.join(hosts)} (--allow-host NAME for more)"
    )


@contextmanager
def listening(host: str, port: int, seconds: int = 30) -> Iterator[socket.socket]:
    """A socket that listens at an address; it is bound before the model is loaded, so that a taken port is reported at once.

    Args:
        host, port: the address; port 0 is a free one.
        seconds: after which the kernel closes a connection whose other end takes nothing of what is sent.

    Raises:
        ConfigError: the host is no address.
        ResourceError: the port is taken or not permitted, or the address is not one of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        remedy = "give 127.0.0.1, or an address of this machine"
        raise ConfigError(f"--host {host!r} is no address: {error}", remedy=remedy, key="host", value=host) from error
    # asyncio sends small packets at once only where the listening socket names its protocol; an answer waits for 40 ms else.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * seconds)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            raise ResourceError(
                f"{host}, port {port} cannot be listened on: {error.strerror or error}",
                remedy="--port 0 takes a free port; --host takes an address of this machine", asked=port,
            ) from error
        yield listener


@contextmanager
def _stopped_by_signals(server: Server) -> Iterator[None]:
    """Stop the server on SIGINT and SIGTERM, and end with status 0: uvicorn's own handlers raise the signal again."""
    def stop(*_: object) -> None:
        server.should_exit = True

    before = {kind: signal.signal(kind, stop) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
