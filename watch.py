"""Whether the processes that train together are all there: a connection from each to process 0, which its kernel closes when it ends.

A process that ends as it should says so first. Collective operations tell less: of a process's devices some may wait for ever for
a peer that another has found gone, and NCCL waits in any case.
"""

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable

BYE = b'\xff' * 4       # else a message is the number of a process that has ended without one
SHAKE = 30              # seconds for a connection to say who it is


class Watch:
    """The connections of this process, and a thread that listens to them.

    ended(number, isbye): called in that thread where process `number` has ended, isbye: having said so.
    """

    def __init__(self, ended: Callable[[int, bool], None]) -> None:
        self.ended, self.peers, self.lock = ended, {}, threading.Lock()

    def listen(self, others: int, token: bytes) -> int:
        """In process 0: wait for so many others that know `token`, bytes; the port."""
        try:
            server = socket.create_server(('::', 0), family=socket.AF_INET6, dualstack_ipv6=True)
        except (OSError, ValueError):           # no IPv6 here
            server = socket.create_server(('', 0))

        def accept():
            with server:
                while len(self.peers) < others:
                    peer = server.accept()[0]
                    peer.settimeout(SHAKE)
                    with contextlib.suppress(OSError, ValueError):
                        said = _read(peer, len(token) + 4)
                        if said[:len(token)] == token:
                            peer.settimeout(None)
                            self.peers[int.from_bytes(said[len(token):], 'big')] = peer
                            continue
                    peer.close()
            self._watch()
        threading.Thread(target=accept, daemon=True, name='watch').start()
        return server.getsockname()[1]

    def connect(self, host: str, port: int, token: bytes, number: int) -> None:
        """In process `number`: connect to process 0, where it listens."""
        peer = socket.create_connection((host, port), SHAKE)
        peer.settimeout(None)
        peer.sendall(token + number.to_bytes(4, 'big'))
        self.peers[0] = peer
        threading.Thread(target=self._watch, daemon=True, name='watch').start()

    def _watch(self):
        with selectors.DefaultSelector() as selector:
            for number, peer in self.peers.items():
                selector.register(peer, selectors.EVENT_READ, number)
            while selector.get_map():
                for key, _ in selector.select():
                    number, said = key.data, None
                    with contextlib.suppress(OSError, ValueError):
                        said = _read(key.fileobj, len(BYE))
                    selector.unregister(key.fileobj)
                    if said is None:
                        self._tell(number)
                    elif said != BYE:
                        number = int.from_bytes(said, 'big')
                    self.ended(number, said == BYE)

    def _tell(self, number):
        """Tell all others that one has ended, in process 0."""
        with self.lock:
            for other, peer in self.peers.items():
                if other not in (0, number):
                    with contextlib.suppress(OSError):
                        peer.sendall(number.to_bytes(len(BYE), 'big'))

    def close(self) -> None:
        """This process ends as it should."""
        with self.lock:
            for peer in self.peers.values():
                with peer, contextlib.suppress(OSError):
                    peer.sendall(BYE)
            self.peers = {}


def _read(peer, size):
    """So many bytes; ValueError where the other end closes before."""
    data = b''
    while len(data) < size:
        piece = peer.recv(size - len(data))
        if not piece:
            raise ValueError('closed')
        data += piece
    return data
