"""Which connection makes room for another; `test_limited_connection.py` has the same with sockets."""

from roost.server.http.connection import RESERVED_CONNECTIONS, OpenConnections, PortConnections

LIMIT = 3


class Opened:
    """A connection that counts how often it is closed."""

    def __init__(self) -> None:
        self.num_drops = 0

    def drop(self) -> None:
        self.num_drops += 1


def opened(port: PortConnections, count: int, path: bytes | None = None) -> list[Opened]:
    """Opens connections, oldest first, and begins a request of each if there is a path."""
    connections = [Opened() for _ in range(count)]
    for connection in connections:
        assert port.open(connection)
        assert path is None or port.begin(connection, path)
    return connections


def dropped(connections: list[Opened]) -> list[int]:
    return [place for place, each in enumerate(connections) if each.num_drops]


def test_probes_whose_responses_nobody_reads_make_room() -> None:
    """They take no key, and so must not hold what is reserved for others."""
    port = PortConnections(LIMIT)
    busy = opened(port, LIMIT, b"/v1/completions")
    probes = opened(port, RESERVED_CONNECTIONS, b"/metrics")
    assert not dropped(probes)
    opened(port, 2, b"/health")
    assert (dropped(probes), dropped(busy)) == ([0, 1], [])
    assert (port.counts.num_busy, port.counts.num_open) == (LIMIT, LIMIT + RESERVED_CONNECTIONS)


def test_a_probe_of_a_busy_connection_leaves_it_busy() -> None:
    port = PortConnections(LIMIT)
    (connection,) = opened(port, 1, b"/v1/completions")
    assert port.begin(connection, b"/health")
    assert port.counts.num_busy == 1
    port.end(connection)
    assert (port.counts.num_busy, port.counts.num_open) == (0, 1)


def test_nothing_is_open_beyond_the_reserve() -> None:
    """A connection that is refused is closed for the next one, if its client leaves it open."""
    limit = LIMIT + RESERVED_CONNECTIONS
    port = PortConnections(limit)
    opened(port, limit, b"/v1/completions")
    port.limit = LIMIT  # as if the process could open fewer files
    refused = [Opened() for _ in range(3)]
    assert [port.open(each) for each in refused] == [False, True, True]
    assert dropped(refused) == [0, 1]
    assert port.counts.num_refused == 1


def test_a_limit_that_rises_is_followed() -> None:
    port = PortConnections(LIMIT)
    opened(port, LIMIT, b"/generate")
    late = Opened()
    port.open(late)
    assert not port.begin(late, b"/generate")
    assert (port.counts.num_refused, port.counts.num_busy) == (1, LIMIT)
    port.limit += 1
    assert port.begin(late, b"/generate")


def test_ports_are_counted_apart() -> None:
    connections = OpenConnections(LIMIT, admin_port=9090)
    opened(connections.of(9090), 2)
    opened(connections.of(8000), 1)
    opened(connections.of(None), 1)
    counts = connections.counts_by_port()
    assert {name: each.num_open for name, each in counts.items()} == {"public": 2, "admin": 2}
    assert OpenConnections(LIMIT).counts_by_port().keys() == {"public"}
