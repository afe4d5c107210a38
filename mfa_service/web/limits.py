"""Rate limits: of each client on each route that changes something and on the keys, and of registrations by everybody.

A route names its limits (`@limited("credentials")`); `mount.py` puts them round the views of one app.

Flask-Limiter counts before the view is called: of a body for the API no byte is parsed then, of the pages' forms 64 KiB
at most. With its store down each process goes on with its share of the limit, and comes back by itself. It is the first
ring only: what must not be got round is counted in the database.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, cast

from flask import Flask
from flask_limiter import Limiter
from limits import parse
from limits.errors import StorageError
from limits.storage import Storage, storage_from_string

from mfa_service.config import Settings
from mfa_service.errors import TooManyAttempts
from mfa_service.web import current_mount
from mfa_service.web.client import client_network
from mfa_service.web.contract import contract_of
from mfa_service.web.stores import store_of

#: The one limit that all clients share.
EVERYBODY = "registrations"
#: Where the calls are counted that the administrators' guard refuses, on all routes together.
REFUSALS = "refusals"


class Limits:
    """The limiter of one app."""

    def __init__(self, settings: Settings, processes: int = 1) -> None:
        """`processes`: how many count beside each other on this machine where there is no store."""
        self._rates = {
            "credentials": settings.auth_rate_limit,
            "sessions": settings.session_rate_limit,
            "administration": settings.admin_rate_limit,
            EVERYBODY: settings.registration_rate_limit,
        }
        self._shares = {name: _share_of(rate, processes) for name, rate in self._rates.items()}
        address, options = store_of(settings)
        self.limiter = Limiter(
            client_network,
            storage_uri=address,
            storage_options=options,
            strategy="fixed-window",
            key_prefix="mfa_service",
            in_memory_fallback_enabled=True,
        )
        # On an app of its own: what a host has configured for its own limiter (RATELIMIT_…) is about the host's routes.
        self.limiter.init_app(Flask("mfa_service.limits", static_folder=None))
        _let_check_write(self.limiter.storage)
        rate = functools.partial(self._rate, "administration")
        shared = self.limiter.shared_limit(rate, scope=REFUSALS, key_func=client_network)
        self._count_refusal = _counted_again(shared(_pass))

    def count_refusal(self) -> None:
        """Count a call that the administrators' guard refuses. Raises RateLimitExceeded once they are used up."""
        self._count_refusal()

    def refusal(self) -> TooManyAttempts:
        """The 429 for the limit that this request has used up."""
        breached = self.limiter.current_limit
        seconds = math.ceil(breached.window.reset_time - time.time()) if breached else 1
        return TooManyAttempts(retry_after=max(1, seconds))

    def is_store_up(self) -> bool:
        """Whether the store of the counters answers; if not, each process counts for itself."""
        return _answers(self.limiter.storage)

    @property
    def is_falling_back(self) -> bool:
        """Whether this process counts for itself, because the store does not answer."""
        return bool(self.limiter._storage_dead)  # noqa: SLF001 - there is no public word for it

    def put_on(self, view: Callable[..., Any]) -> Callable[..., Any]:
        """The view with the limits that it is declared to have; itself if there are none."""
        if not contract_of(view).limits:
            return view
        # The last one is put on first, so that the first one is looked at first.
        for name in reversed(contract_of(view).limits):
            key = (lambda: EVERYBODY) if name == EVERYBODY else client_network
            rate = functools.partial(self._rate, name)
            view = self.limiter.limit(rate, key_func=key)(_under_own_name(view, name))
        return _counted_again(view)

    def _rate(self, name: str) -> str:
        """How often now: where each process counts for itself, its share, for a client may come to all of them."""
        return self._shares[name] if self.is_falling_back else self._rates[name]


def _share_of(rate: str, processes: int) -> str:
    """What one of so many may give of a rate; one at least."""
    whole = parse(rate)
    return f"{max(1, whole.amount // processes)} per {whole.multiples} {whole.GRANULARITY.name}"


def _pass() -> None:
    """What a limit is put round where there is no view to keep."""


def _counted_again(view: Callable[..., Any]) -> Callable[..., Any]:
    """Count once more if the store has just died; the view itself has not been reached then.

    Of requests that find the store dead at the same time Flask-Limiter turns one to the counters of the process, and
    fails the others.
    """

    @functools.wraps(view)
    def counted_again(*args: Any, **kwargs: Any) -> Any:
        try:
            return view(*args, **kwargs)
        except StorageError:
            return view(*args, **kwargs)

    return counted_again


def _under_own_name(view: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The view under a name of its own.

    Limits of one name are all counted together: who is over the first would use up the second, too.
    """

    @functools.wraps(view, updated=())
    def named(*args: Any, **kwargs: Any) -> Any:
        return view(*args, **kwargs)

    named.__qualname__ = f"{view.__qualname__}.{name}"
    # What is declared is ours; what Flask-Limiter has noted would make it believe that this one is limited, too.
    vars(named).update({key: value for key, value in vars(view).items() if key.startswith("mfa_")})
    return named


def current_limits() -> Limits:
    """The limits of the app that answers this request."""
    found: Limits = current_mount().limits
    return found


def complaint_of_store(settings: Settings) -> str | None:
    """Why the store that these settings name counts nothing, in its own words; None if it counts."""
    address, options = store_of(settings)
    store = cast("Storage", storage_from_string(address, **options))
    try:
        store.incr("mfa_service/check", 1)
    except StorageError as error:
        return str(error.storage_error)
    return None


def _let_check_write(store: Storage) -> None:
    """Let a store that counts nothing be down: a ping is answered by one that is full or read-only, too."""
    ping = store.check

    def check() -> bool:
        try:
            return ping() and store.incr("mfa_service/check", 1) > 0
        except StorageError:
            return False

    store.check = check  # type: ignore[method-assign]


def _answers(store: Storage) -> bool:
    try:
        return bool(store.check())
    except StorageError:
        return False
