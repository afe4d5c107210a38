"""From a thousand users to a million, from ten thousand audit events to ten million: does anything take longer?

Rows that are only there to be many are made by the database itself, and belong to nobody who signs in.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from sqlalchemy import Connection, text

from bench.load import Caller, Reply, median_of
from bench.servers import PASSWORD, Bench

#: How SQL says "a row for each n", an id, a time and some bytes.
_DIALECTS = {
    "sqlite": {
        "series": "(WITH RECURSIVE s(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM s WHERE n < :last)"
        " SELECT n FROM s)",
        "id": "printf('{}%021d', n)",
        "time": "strftime('%Y-%m-%d %H:%M:%f000', 1704067200 + n * 5, 'unixepoch')",
        "far": "'2099-01-01 00:00:00.000000'",
        "bytes": "x'00'",
        "detail": "'{}'",
    },
    "postgresql": {
        "series": "generate_series(CAST(:first AS bigint), :last) AS s(n)",
        "id": "'{}' || lpad(n::text, 21, '0')",
        "time": "timestamptz '2024-01-01' + n * interval '5 seconds'",
        "far": "timestamptz '2099-01-01'",
        "bytes": "'\\x00'::bytea",
        "detail": "'{}'::json",
    },
}
_USERS = (
    "INSERT INTO mfa_users (id, username, username_key, email, email_key, sealed_password, password_set_at, created_at,"
    " seen_at, had_factor_at) SELECT {u}, {u}, {u}, {u} || '@x.example', {u} || '@x.example', {bytes}, {time}, {time},"
    " {time}, {time} FROM {series}",
    "INSERT INTO mfa_secrets (id, user_id, sealed_secret, last_step, created_at, confirmed_at)"
    " SELECT {t}, {u}, {bytes}, 1, {time}, {time} FROM {series}",
    "INSERT INTO mfa_sessions (id, user_id, address, network, user_agent, step, amr, key_id, generation, created_at,"
    " authenticated_at, refreshed_at, seen_at, expires_at) SELECT {s}, {u}, '192.0.2.1', '192.0.2.1', 'bench',"
    " 'authenticated', 'pwd otp mfa', 'k', 0, {time}, {time}, {time}, {time}, {far} FROM {series}",
)
_EVENTS = (
    "INSERT INTO mfa_events (at, event, user_id, address, user_agent, request_id, detail)"
    " SELECT {time}, 'login.completed', {u}, '192.0.2.1', 'bench', 'bench-bench', {detail} FROM {series}",
)
_BATCH = 500_000


@dataclass(frozen=True)
class Size:
    """How many users and audit events, and how long each thing took then: medians in seconds."""

    users: int
    events: int
    took: dict[str, float]


def grow(bench: Bench, sizes: list[int], looks: int) -> Iterator[Size]:
    """Fill up to each number of users, with ten events for each of them, and look again."""
    for before, users in pairwise([0, *sizes]):
        with bench.services() as services, services.engine.connect() as connection:
            _fill(connection, _USERS, before, users)
            _fill(connection, _EVENTS, before * 10, users * 10)
            connection.execute(text("ANALYZE"))  # PostgreSQL does so by itself, a minute later
            connection.commit()
        people = bench.add_people(looks + 1)
        with bench.service() as address:
            yield Size(users, users * 10, _look(bench, address, people, looks))


def _look(bench: Bench, address: str, people: list[tuple[str, bytes]], looks: int) -> dict[str, float]:
    bench.make_admin(people[0][0])
    caller, token, bodies = Caller(address), bench.sign_in(*people[0]), bench.verify_bodies(people[1:])
    name = f"u{77:021}"
    asked: dict[str, Callable[[int], Reply]] = {
        "login": lambda n: caller.ask("POST", "/auth/login", {"username": bench.names[n], "password": PASSWORD}),
        "verify-mfa": lambda n: caller.ask("POST", "/auth/verify-mfa", bodies[n]),
        "profile": lambda _: caller.ask("GET", "/api/profile", token=token),
        "admin search": lambda _: caller.ask("GET", f"/api/admin/users?q={name}", token=token),
        "admin audit": lambda _: caller.ask("GET", f"/api/admin/audit?user={name}", token=token),
    }
    return {what: median_of(min(looks, 20) if what == "login" else looks, ask) for what, ask in asked.items()}


def _fill(connection: Connection, statements: tuple[str, ...], first: int, last: int) -> None:
    words = _DIALECTS[connection.dialect.name]
    words = words | {letter: words["id"].format(letter) for letter in "uts"}
    for statement in statements:
        for start in range(first, last, _BATCH):
            span = {"first": start + 1, "last": min(start + _BATCH, last)}
            connection.execute(text(statement.format(**words)), span)
            connection.commit()
