"""`imf serve` as a process of its own on a free loopback port: many clients at once, where it listens, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import COUNT, tiny_checkpoint, tiny_graph
from typer.testing import CliRunner

from imf_core.cli import app
from imf_core.commands.serve.serve import allowed_hosts, exposure, listening
from imf_core.errors import CheckpointError, ConfigError, ResourceError
from imf_core.predict import Predictor, Question

CLIENTS = 200


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    return tiny_checkpoint(tiny_graph(folder / "graph"), folder / "best")


@contextmanager
def server(checkpoint: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server and its port; whatever happens, the process is gone afterwards."""
    code = "from imf_core.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", str(checkpoint), "--port", "0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 120)[0], "the server did not start"
        line = process.stdout.readline()
        assert line.startswith(f"{checkpoint}: http://"), process.communicate(timeout=60)
        yield process, int(line.split("://")[1].split()[0].rpartition(":")[2])
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=60)


def ended(process: subprocess.Popen[str], kind: signal.Signals) -> tuple[int, str, str]:
    """Send a signal; the status and what was printed until the end."""
    process.send_signal(kind)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def post(port: int, body: bytes, host: str = "127.0.0.1") -> tuple[int, Any]:
    connection = http.client.HTTPConnection(host, port, timeout=120)
    try:
        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_two_hundred_clients_at_once(checkpoint: Path) -> None:
    """Each gets the answers to its own questions, those of `Predictor`; then SIGTERM ends the server with status 0."""
    batches = [
        [Question(f"e{(i + j) % COUNT}", ("next", "[rest]")[i % 2], None) if (i + j) % 3 else Question(None, "next", f"e{j}")
         for j in range(1 + i % 4)]
        for i in range(CLIENTS)
    ]
    bodies = [json.dumps({"questions": [vars(q) for q in batch], "k": 1 + i % 7}).encode() for i, batch in enumerate(batches)]
    together, found = threading.Barrier(CLIENTS), dict[int, tuple[int, Any]]()

    with server(checkpoint) as (process, port):
        def client(number: int) -> None:
            together.wait(60)
            found[number] = post(port, bodies[number])

        threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        status, out, err = ended(process, signal.SIGTERM)
    assert (status, out, err) == (0, "stopped\n", "")
    assert sorted(found) == list(range(CLIENTS))
    assert {code for code, _ in found.values()} == {200}
    predictor = Predictor.load(checkpoint)
    for number, batch in enumerate(batches):
        results = found[number][1]["results"]
        for question, result, answers in zip(batch, results, predictor.answers(batch, 1 + number % 7), strict=True):
            assert {key: result[key] for key in ("head", "relation", "tail")} == vars(question)
            assert [answer["entity"] for answer in result["answers"]] == [answer.entity for answer in answers]
            for own, wanted in zip(result["answers"], answers, strict=True):
                assert own["score"] == pytest.approx(wanted.score, abs=1e-6)
                assert own["branch_scores"] == pytest.approx(wanted.branch_scores, abs=1e-6)
                assert own["weights"] == pytest.approx(wanted.weights, abs=1e-6)


def test_it_listens_on_loopback_alone_and_refuses_what_is_too_long(checkpoint: Path) -> None:
    with server(checkpoint, "--max-body-kib", "1", "--max-batch", "2") as (process, port):
        body = json.dumps({"questions": [{"head": "e3", "relation": "next"}]}).encode()
        assert post(port, body)[0] == 200
        # 127.0.0.2 is this machine as well: a socket on all addresses would answer there.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=10).close()
        status, answer = post(port, body.ljust(3 * 2**20))
        assert status == 413 and "longer than 1,024 bytes" in answer["error"]
        status, answer = post(port, json.dumps({"questions": [{"head": "e3", "relation": "next"}] * 3}).encode())
        assert status == 422 and "at most 2" in answer["what_to_do"]
        assert post(port, body)[0] == 200
        status, out, err = ended(process, signal.SIGINT)
    assert (status, out, err) == (0, "stopped\n", "")


@contextmanager
def opened(port: int, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections that say so much and then nothing."""
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60)) for _ in range(count)]
        for client in clients:
            client.sendall(sent)
        yield clients


def rest(client: socket.socket) -> bytes:
    """What a connection still says until it is closed."""
    said = b""
    with suppress(ConnectionError):
        while part := client.recv(2**16):
            said += part
    return said


def whole(body: bytes) -> bytes:
    """A request as it is sent."""
    return HEADER + b"Content-Length: %d\r\n\r\n" % len(body) + body


def descriptors(process: subprocess.Popen[str]) -> int:
    return len(os.listdir(f"/proc/{process.pid}/fd"))


HEADER = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
QUESTION = json.dumps({"questions": [{"head": "e3", "relation": "next"}]}).encode()
HALVES = (
    b"", b"POST /pre", HEADER, HEADER + b"Content-Length: 50\r\n\r\n{",
    HEADER + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
)


@dataclass(frozen=True)
class Strict:
    """A server with narrow limits, and its descriptors while no connection is open."""

    process: subprocess.Popen[str]
    port: int
    idle: int


@pytest.fixture(scope="module")
def strict(checkpoint: Path) -> Iterator[Strict]:
    with server(checkpoint, "--timeout", "1", "--max-connections", "40", "--max-k", "20") as (process, port):
        with opened(port, 1, whole(QUESTION)) as (client,):
            assert client.recv(13) == b"HTTP/1.1 200 "
            idle = descriptors(process) - 1
        yield Strict(process, port, idle)
        assert ended(process, signal.SIGTERM) == (0, "stopped\n", "")


def settled(process: subprocess.Popen[str], wanted: int) -> int:
    """Open descriptors, as soon as they are so many, or after a minute."""
    deadline = time.monotonic() + 60
    while descriptors(process) != wanted and time.monotonic() < deadline:
        time.sleep(0.02)
    return descriptors(process)


def test_a_connection_that_says_nothing_more_is_closed(strict: Strict) -> None:
    """Silent from the start, within a header, within a body; and one that has its answer and asks no more."""
    process, port, idle = strict.process, strict.port, strict.idle
    with ExitStack() as stack:
        halves = [stack.enter_context(opened(port, 1, half))[0] for half in HALVES]
        answered = stack.enter_context(opened(port, 1, whole(QUESTION)))[0]
        pipelined = stack.enter_context(opened(port, 1, whole(QUESTION) + HEADER))[0]
        for half, client in zip(HALVES, halves, strict=True):
            said = rest(client)
            assert said.startswith(b"HTTP/1.1 408 ") and b"no whole request came within 1 s" in said, half
        for client in (answered, pipelined):
            said = rest(client)
            assert said.startswith(b"HTTP/1.1 200 ") and said.count(b"HTTP/1.1") == 1
        assert settled(process, idle) == idle  # although the clients keep their ends
    assert post(port, QUESTION)[0] == 200


@pytest.mark.parametrize("start", [b"GET /health HTTP/1.1\r\nX: ", HEADER + b"Content-Length: 99999\r\n\r\n"])
def test_a_byte_now_and_then_does_not_keep_a_connection(strict: Strict, start: bytes) -> None:
    """Slowloris: time is counted from a request's first byte, not from its last."""
    with opened(strict.port, 1, start) as (client,):
        client.settimeout(0.05)
        said = b""
        for _ in range(1200):  # a minute, where it is never closed
            try:
                client.sendall(b"x")
                said = client.recv(2**16)
                break
            except TimeoutError:
                continue
            except ConnectionError:
                said = b"reset"
                break
        assert said.startswith((b"HTTP/1.1 408 ", b"reset"))


def test_a_client_that_does_not_read_is_let_go(strict: Strict) -> None:
    """Answers that nobody takes are kept for the time limit only."""
    process, port, idle = strict.process, strict.port, strict.idle
    body = json.dumps({"questions": [{"head": f"e{i % COUNT}", "relation": "next"} for i in range(256)], "k": 20}).encode()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(whole(body) * 6)  # some 6 MB of answers
        assert settled(process, idle + 1) == idle + 1
        assert settled(process, idle) == idle


def test_fifteen_hundred_connections_do_not_take_as_many_descriptors(strict: Strict) -> None:
    """What is beyond the cap is refused in words, and the rest is closed by the time limit."""
    process, port, idle = strict.process, strict.port, strict.idle
    with opened(port, 1500) as clients:
        most = descriptors(process)
        said = [rest(client) for client in clients]
        assert settled(process, idle) == idle  # although the clients keep their ends
    assert most <= idle + 40 + 3 * 128  # those that are being refused
    assert {answer[:13] for answer in said} == {b"HTTP/1.1 408 ", b"HTTP/1.1 503 "}
    refused = next(answer for answer in said if answer.startswith(b"HTTP/1.1 503 "))
    assert b"40 connections are open" in refused and b"--max-connections" in refused
    assert post(port, QUESTION)[0] == 200


def test_long_headers_and_long_lists_are_refused(strict: Strict) -> None:
    port = strict.port
    start = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "
    with opened(port, 1, start + b"x" * 10_000 + b"\r\n\r\n") as (client,):
        assert client.recv(13) == b"HTTP/1.1 200 "
    for end in (b"", b"\r\n\r\n"):  # one that does not end, and one that is there as a whole
        with opened(port, 1, start + b"x" * 16_400 + end) as (client,):
            said = rest(client)
        assert said.startswith(b"HTTP/1.1 400 ") and b"at most 16,384 bytes" in said
    status, answer = post(port, json.dumps({**json.loads(QUESTION), "k": 21}).encode())
    assert status == 422 and "1 to 20 answers" in answer["what_to_do"] and "--max-k" in answer["what_to_do"]


def test_a_long_body_is_not_taken_for_a_header(strict: Strict) -> None:
    """A body in pieces, with the beginning of the next request behind its end."""
    question = QUESTION + b" " * 30_000
    request = HEADER + b"Content-Length: %d\r\n\r\n" % len(question) + question
    with opened(strict.port, 1) as (client,):
        for piece in (request[:200], request[200:20_000], request[20_000:] + request[:150], request[150:]):
            client.sendall(piece)
            time.sleep(0.05)
        said = b""
        while said.count(b"HTTP/1.1 200 ") < 2 and (part := client.recv(2**16)):
            said += part
    assert said.count(b"HTTP/1.1 200 ") == 2


def test_all_that_wait_are_answered_before_the_end(checkpoint: Path) -> None:
    """Many requests at once, and SIGTERM when the first of them is answered."""
    body = json.dumps({"questions": [{"head": f"e{i % COUNT}", "relation": "next"} for i in range(64)], "k": 20}).encode()
    with server(checkpoint) as (process, port), opened(port, 24, whole(body)) as clients:
        first = clients[0].recv(2**16)
        process.send_signal(signal.SIGTERM)
        said = [(first if client is clients[0] else b"") + rest(client) for client in clients]
        out, err = process.communicate(timeout=60)
    assert [answer[:13] for answer in said] == [b"HTTP/1.1 200 "] * 24
    assert {len(json.loads(answer.partition(b"\r\n\r\n")[2])["results"]) for answer in said} == {64}
    assert (process.returncode, out, err) == (0, "stopped\n", "")


def test_a_request_that_is_under_way_is_answered_before_the_end(checkpoint: Path) -> None:
    head = HEADER + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(QUESTION)
    with server(checkpoint) as (process, port), socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(head)
        assert client.recv(1000).startswith(b"HTTP/1.1 100")  # the server waits for the body now
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:  # until no new connection is taken
            try:
                socket.create_connection(("127.0.0.1", port), timeout=10).close()
            except ConnectionError:  # refused, or reset as the listening socket closes
                break
        client.sendall(QUESTION)
        answer = rest(client)
        out, err = process.communicate(timeout=60)
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["results"][0]["answers"]) == 10
    assert (process.returncode, out, err) == (0, "stopped\n", "")


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "fe80::1%eth0"])
def test_an_address_that_others_reach_is_warned_of(address: str) -> None:
    said = exposure(address, allowed_hosts(address, ["mine.example"]))
    assert f"warning: {address} can be reached from other machines and there is no authentication" in said
    assert "localhost, 127.0.0.1, [::1]" in said and "mine.example (--allow-host" in said


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1"])
def test_loopback_needs_no_warning(address: str) -> None:
    assert exposure(address, []) == ""


def test_a_place_that_cannot_be_listened_on_is_told(checkpoint: Path, tmp_path: Path) -> None:
    def fails(*options: str) -> BaseException | None:
        return CliRunner().invoke(app, ["serve", *options]).exception

    with listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        error = fails(str(checkpoint), "--port", str(port))
    assert isinstance(error, ResourceError) and error.remedy
    assert f"127.0.0.1, port {port} cannot be listened on" in error.problem
    error = fails(str(checkpoint), "--host", "x" * 70, "--port", "0")  # too long for a name: nobody is asked about it
    assert isinstance(error, ConfigError) and "xxx' is no address" in error.problem
    error = fails(str(checkpoint), "--host", "192.0.2.1", "--port", "0")  # an address that is nobody's
    assert isinstance(error, ResourceError) and "192.0.2.1" in error.problem
    assert isinstance(fails(str(tmp_path), "--port", "0"), CheckpointError)
    assert isinstance(fails(str(checkpoint), "--allow-host", "a*b"), ConfigError)


def test_help_does_not_wait_for_the_server_libraries() -> None:
    code = "import sys, imf_core.cli; print(sorted({'fastapi', 'uvicorn', 'starlette'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_small_answers_are_sent_at_once() -> None:
    """asyncio asks the listening socket for its protocol; without it an answer waits 40 ms for the client's next packet."""
    with listening("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
