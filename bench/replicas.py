"""Whether a request asks more of the database and of Redis where there are more replicas: counted, not timed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle, islice

from redis import Redis
from sqlalchemy import create_engine, text

from bench.figures import Effort, Figure
from bench.load import Caller
from bench.servers import PASSWORD, Bench, free_port

#: Requests of the shorter of two runs: what is once for each start is in both of them.
_FEW = 10
#: Transactions and commands that counting may be off by.
_SLACK = 5


@dataclass(frozen=True)
class Work:
    """What there was to do: transactions of PostgreSQL, commands of Redis."""

    transactions: float
    commands: float


def of_replicas(bench: Bench, effort: Effort) -> Iterator[Figure]:
    """The work of a request behind one replica and behind two, on PostgreSQL."""
    more = 10 * effort.rounds
    people = bench.add_people(4 * (2 * _FEW + more) + 1)
    token, bodies = bench.sign_in(*people[0]), iter(bench.verify_bodies(people[1:]))
    wrong = {"username": bench.names[0], "password": f"not {PASSWORD}"}
    routes: dict[str, Callable[[Caller], object]] = {
        "`GET /api/profile`": lambda caller: caller.ask("GET", "/api/profile", token=token),
        "`POST /auth/verify-mfa`": lambda caller: caller.ask("POST", "/auth/verify-mfa", next(bodies)),
        "a refused `POST /auth/login`": lambda caller: caller.ask("POST", "/auth/login", wrong),
    }
    _look_after_itself(bench, "off")
    for what, ask in routes.items():
        one, two = (_work_of_one(bench, replicas, ask, more) for replicas in (1, 2))
        told = [f"{each.transactions:.2f} transactions, {each.commands:.2f} commands" for each in (one, two)]
        slack = _SLACK / more
        is_met = two.transactions <= one.transactions + slack and two.commands <= one.commands + slack
        yield Figure(f"work of {what}, 1 and 2 replicas", "no more", told[1], is_met, f"{told[0]} with one")
    _look_after_itself(bench, "on")


def _look_after_itself(bench: Bench, is_to: str) -> None:
    """Autovacuum counts among the transactions."""
    engine = create_engine(bench.database, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"ALTER SYSTEM SET autovacuum = {is_to}")
        connection.exec_driver_sql("SELECT pg_reload_conf()")
    engine.dispose()


def _work_of_one(bench: Bench, replicas: int, ask: Callable[[Caller], object], more: int) -> Work:
    few, many = (_work(bench, replicas, ask, count) for count in (_FEW, _FEW + more))
    return Work((many.transactions - few.transactions) / more, (many.commands - few.commands) / more)


def _work(bench: Bench, replicas: int, ask: Callable[[Caller], object], requests: int) -> Work:
    before = _done(bench)
    with ExitStack() as stack:
        addresses = [stack.enter_context(bench.service(free_port())) for _ in range(replicas)]
        callers = [Caller(address) for address in addresses]
        for caller in islice(cycle(callers), requests):
            ask(caller)
        for caller in callers:
            caller.close()  # a service that is stopped waits for whoever is still connected
    # Now that the services have ended: until then PostgreSQL may keep to itself what it has counted.
    after = _done(bench)
    return Work(after.transactions - before.transactions, after.commands - before.commands)


def _done(bench: Bench) -> Work:
    engine = create_engine(bench.database)
    counted = text("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()")
    with engine.connect() as connection:
        transactions = connection.execute(counted).scalar_one()
    engine.dispose()
    with Redis.from_url(bench.redis) as store:
        return Work(transactions, store.info("stats")["total_commands_processed"])
