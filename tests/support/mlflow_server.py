"""`mlflow server` on loopback, in a process of its own that is ended by its own handle."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WAIT = 300.0  # seconds to be up, on a machine that does other things too


@contextmanager
def mlflow_server(folder: Path, database: Path, *arguments: str, **variables: str) -> Iterator[str]:
    """Address of a server that answers.

    Args:
        folder: where it is started, and has its log.
        database: of the runs.
        arguments: more of them.
        variables: more of its environment.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}", "--host", "127.0.0.1",
               "--port", str(port), "--workers", "1", *arguments]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **variables}, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + _WAIT
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)
