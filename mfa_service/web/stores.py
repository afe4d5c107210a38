"""Where rate limits are counted: in memory, in one Redis, in a cluster of them, or in the one that Sentinel names."""

from typing import Any

from mfa_service.config import Settings

#: So that a store that hangs costs a request no more than this, in seconds.
_TIMEOUT = 0.25


def store_of(settings: Settings) -> tuple[str, dict[str, Any]]:
    """The address and the options of the store, as `limits` takes them."""
    address, options = settings.redis_url, {"wrap_exceptions": True}
    if not address:
        return "memory://", options
    timeouts = {"socket_connect_timeout": _TIMEOUT, "socket_timeout": _TIMEOUT}
    if "+cluster:" in address.partition("/")[0]:
        from mfa_service.web.redundant import cluster  # noqa: PLC0415 - redis is an extra

        return cluster(address, options | timeouts)
    if "+sentinel:" in address.partition("/")[0]:
        from mfa_service.web.redundant import sentinel  # noqa: PLC0415 - redis is an extra

        return sentinel(address, options | timeouts)
    return address, options | timeouts
