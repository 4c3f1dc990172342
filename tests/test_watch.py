"""The watch over processes that train together: who has ended is known to all, and strangers are not heard."""

import queue
import socket
import time

import pytest

from watch import Watch

TOKEN = b'sixteen letters.'


@pytest.fixture
def three():
    """Watches of processes 0, 1 and 2, each with the queue of what it is told, and the port of 0."""
    queues = [queue.Queue() for _ in range(3)]
    watches = [Watch(lambda *ended, told=told: told.put(ended)) for told in queues]
    port = watches[0].listen(2, TOKEN)
    with socket.create_connection(('127.0.0.1', port)) as stranger:         # before the others: it doesn't take their place
        stranger.sendall(b'somebody else ..' + (1).to_bytes(4, 'big'))
        stranger.recv(1)
    for number in 1, 2:
        watches[number].connect('127.0.0.1', port, TOKEN, number)
    deadline = time.monotonic() + 60
    while len(watches[0].peers) < 2:
        assert time.monotonic() < deadline, 'not all were heard'
        time.sleep(0.01)
    yield watches, queues
    for watch in watches:
        watch.close()


def test_the_end_of_one_is_told_to_all(three):
    watches, queues = three
    watches[2].peers[0].shutdown(socket.SHUT_RDWR)          # what the kernel does for a process that is killed
    assert queues[0].get(timeout=10) == (2, False) and queues[1].get(timeout=10) == (2, False)


def test_the_end_of_process_0_is_seen_by_the_others(three):
    watches, queues = three
    watches[0]._tell = lambda number: None                  # the dead tell nothing
    for peer in watches[0].peers.values():
        peer.shutdown(socket.SHUT_RDWR)
    assert queues[1].get(timeout=10) == (0, False) and queues[2].get(timeout=10) == (0, False)


def test_an_end_that_was_said_is_told_from_a_death(three):
    watches, queues = three
    watches[1].close()
    assert queues[0].get(timeout=10) == (1, True)
    with pytest.raises(queue.Empty):
        queues[2].get(timeout=0.2)
