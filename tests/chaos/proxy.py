"""The network between a broker and everybody else: a loopback proxy that can be cut, or hold all that is sent."""

import contextlib
import socket
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

_LOOPBACK: Final = "127.0.0.1"
_CHUNK_BYTES: Final = 1 << 16
_CONNECT_S: Final = 5.0


class Proxy:
    """Carries connections to the address that `lead_to` was given.

    Attributes:
        address: `host:port` of its own.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server((_LOOPBACK, 0))
        self.address = f"{_LOOPBACK}:{self._listener.getsockname()[1]}"
        self._target = (_LOOPBACK, 0)
        self._carried: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._cut = False
        self._flows = threading.Event()
        self._flows.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _end(self._listener)
        self.cut()
        self._flows.set()

    def lead_to(self, address: str) -> None:
        """Carry connections there from now on."""
        host, _, port = address.rpartition(":")
        self._target = host, int(port)

    def cut(self) -> None:
        """Break every connection, and refuse new ones."""
        with self._lock:
            self._cut = True
            carried, self._carried = self._carried, set()
        for each in carried:
            _end(each)

    def hold(self) -> None:
        """Keep everything that is sent from now on; it arrives late, if its sender still waits."""
        self._flows.clear()

    def restore(self) -> None:
        """Let through again, and first of all what was held."""
        self._cut = False
        self._flows.set()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target, _CONNECT_S)
        except OSError:  # the broker is down: so is the way to it
            client.close()
            return
        with self._lock:
            refused = self._cut
            if not refused:
                self._carried |= {client, server}
        if refused:
            client.close()
            server.close()
            return
        threading.Thread(target=self._pump, args=(server, client), daemon=True).start()
        self._pump(client, server)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):  # either side has gone
            while data := source.recv(_CHUNK_BYTES):
                self._flows.wait()
                sink.sendall(data)
        with self._lock:
            self._carried -= {source, sink}
        _end(source)
        _end(sink)


class Network:
    """A proxy for each broker, all of them cut, held and restored together."""

    def __init__(self, proxies: Sequence[Proxy]) -> None:
        self._proxies = proxies

    @property
    def address(self) -> str:
        """`host:port` of each, by commas."""
        return ",".join(proxy.address for proxy in self._proxies)

    def cut(self) -> None:
        """See `Proxy`."""
        for proxy in self._proxies:
            proxy.cut()

    def hold(self) -> None:
        """See `Proxy`."""
        for proxy in self._proxies:
            proxy.hold()

    def restore(self) -> None:
        """See `Proxy`."""
        for proxy in self._proxies:
            proxy.restore()


def _end(connection: socket.socket) -> None:
    """Wake whoever reads from it, then close."""
    with contextlib.suppress(OSError):  # closed from the other side
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
