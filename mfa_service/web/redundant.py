"""Rate limits counted in a Redis of several machines: a cluster, or a master that Sentinel watches. Needs `redis`."""

import functools
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from limits.storage import RedisClusterStorage, Storage
from redis import RedisCluster
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError
from redis.retry import Retry

R = TypeVar("R")

#: How long a thread waits for another that connects to the cluster, in seconds.
_PATIENCE = 0.5
#: What is not there is not asked again and again while somebody waits: the process counts for itself meanwhile.
_ONCE = Retry(NoBackoff(), 0)


def cluster(address: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A `redis+cluster:` or `rediss+cluster:` address and these options, as `limits` takes them."""
    # The nodes that were named stay known, by name: those that were discovered may all come back elsewhere.
    own = {"retry": _ONCE, "require_full_coverage": False, "dynamic_startup_nodes": False}
    return f"mfa+{_plain(address)}", options | _account(address) | _tls(address) | own


def sentinel(address: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A `redis+sentinel:` or `rediss+sentinel:` address and these options, as `limits` takes them."""
    timeouts = {name: value for name, value in options.items() if name.startswith("socket_")}
    of_sentinels = timeouts | _tls(address) | {"retry": _ONCE}
    # What a replica has counted comes late.
    own = {"sentinel_kwargs": of_sentinels, "use_replicas": False}
    return _plain(address), options | _account(address) | _tls(address) | own


def _plain(address: str) -> str:
    """The address as `limits` knows it: that of TLS is ours."""
    return address.replace("rediss+", "redis+", 1)


def _tls(address: str) -> dict[str, bool]:
    return {"ssl": True} if address.startswith("rediss+") else {}


def _account(address: str) -> dict[str, str]:
    """Who we are to Redis: `limits` takes it from the address, too, but encoded as it is there."""
    url = urlsplit(address)
    given = {"username": url.username, "password": url.password}
    return {name: unquote(value) for name, value in given.items() if value}


class ClusterStore(Storage):
    """A Redis Cluster that need not be there from the start, and is up while each slot has a master that answers.

    To look for its nodes takes a while where they hang: one thread does, and nobody else waits for it for long.
    """

    STORAGE_SCHEME = ["mfa+redis+cluster"]  # noqa: RUF012 - as `limits` declares it

    def __init__(self, uri: str, *, wrap_exceptions: bool, **options: Any) -> None:
        """`options` are those of `limits` for a cluster."""
        super().__init__(uri, wrap_exceptions=wrap_exceptions)
        self._address, self._options = uri.removeprefix("mfa+"), options
        self._found: RedisClusterStorage | None = None
        self._looking = threading.Lock()

    @property
    def _cluster(self) -> RedisClusterStorage:
        return self._found or self._alone(self._connect, patience=_PATIENCE)

    def _connect(self) -> RedisClusterStorage:
        if self._found is None:
            found: Any = RedisClusterStorage(self._address, **self._options)
            nodes = found.storage.nodes_manager
            nodes.initialize = functools.partial(self._alone, nodes.initialize, patience=0)
            self._found = found
        return self._found

    def _alone(self, look: Callable[..., R], *, patience: float, **options: Any) -> R:
        if not self._looking.acquire(timeout=patience):
            raise RedisClusterException("another thread is looking for the nodes")
        try:
            return look(**options)
        finally:
            self._looking.release()

    @property
    def base_exceptions(self) -> tuple[type[Exception], ...]:
        """What goes wrong with Redis; that no node answers is, to its client, no error of Redis."""
        return RedisError, RedisClusterException

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count one more."""
        return self._cluster.incr(key, expiry, amount)

    def get(self, key: str) -> int:
        """How much has been counted."""
        return self._cluster.get(key)

    def get_expiry(self, key: str) -> float:
        """When the count begins anew."""
        return self._cluster.get_expiry(key)

    def clear(self, key: str) -> None:
        """Forget a count."""
        self._cluster.clear(key)

    def reset(self) -> int | None:
        """Forget all counts."""
        return self._cluster.reset()

    def check(self) -> bool:
        """Whether every slot is served. That a replica is gone is none of our business."""
        with suppress(*self.base_exceptions):
            client: Any = self._cluster.storage
            is_whole = client.cluster_info(target_nodes=RedisCluster.RANDOM)["cluster_state"] == "ok"
            return is_whole and bool(client.ping(target_nodes=RedisCluster.PRIMARIES))
        return False
