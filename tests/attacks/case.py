"""What a case is. To add one:

1. Write a function of one argument, the target, in the file of its theme, that attacks it and asserts what must hold::

       @case("T23", holds="a code is accepted once", stems_from="CVE-2025-6014", broken_by="codes_again")
       def test_a_code_is_accepted_once(target: Target) -> None: ...

2. Put the weakness that it finds into `broken/server.py`, behind the name given as `broken_by`: one
   `weak("codes_again")` at the place of one check. A case that tries several things has a weakness for each of them,
   separated by spaces: `broken_by="accepts_none accepts_blank"`.

`broken/test_broken.py` then runs the case twice: without the weakness it has to hold, with it, it has to say broken.
Name it at its promise in docs/threat-model.md as well. A case should take less than ten seconds.
`needs` says what a target must offer (see `Target.offers`); where it does not, the case is listed as not run.
The report shows a case by its last request and answer; where those are a control, say `target.shows(answer)` before.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.attacks.target import Target

#: What a target may be unable to offer, and what the report says then.
NEEDS = {
    "admin": "needs an administrator's token (--admin-token)",
    "addresses": "needs a target on loopback, where one machine has many addresses",
    "clock": "needs the service's clock: only on a stack of the suite's own",
    "database": "needs the database: only on a stack of the suite's own",
    "direct": "needs a way round the proxy: only on a stack of the suite's own",
    "ipv6": "needs a proxy that listens on ::1, too: only on a stack of the suite's own, on a machine with IPv6",
    "key": "needs the signing key: only on a stack of the suite's own",
    "limits": "is about limits as they are by default, and those of this target are raised (--raised-limits)",
    "listener": "needs an address at which the target may reach this machine (--listen)",
    "logs": "needs the logs: only on a stack of the suite's own",
    "pages": "needs the pages for browsers (MFA_TOKEN_LOCATIONS=header,cookie)",
    "policy": "changes the policy of everybody: only on a stack of the suite's own",
    "operator": "needs whoever runs the service: only on a stack of the suite's own",
    "proxy": "is about the proxy: there is none before this target",
    "registrations": "closes registration to everybody for an hour: only on a stack of the suite's own",
    "tries": "tries more than one client may: needs raised limits (--raised-limits), or loopback with its addresses",
}


@dataclass(frozen=True)
class Case:
    """One attack: what must hold, where it failed before, and the weaknesses on which it says broken."""

    number: str
    holds: str
    broken_by: tuple[str, ...]
    stems_from: str
    needs: tuple[str, ...]
    run: Callable[[Target], None]
    is_last: bool = False


CASES: dict[str, Case] = {}


def case(
    number: str, *, holds: str, broken_by: str, stems_from: str, needs: tuple[str, ...] = (), is_last: bool = False
) -> Callable[[Callable[[Target], None]], Any]:
    """Declare a case; the function stays an ordinary test. The last one looks at what all others left."""
    assert set(needs) <= set(NEEDS), needs

    def declare(run: Callable[[Target], None]) -> Any:
        assert number not in CASES, f"{number} is declared twice"
        CASES[number] = Case(number, holds, tuple(broken_by.split()), stems_from, needs, run, is_last)
        run.case = CASES[number]  # type: ignore[attr-defined]
        return pytest.mark.attacks(pytest.mark.services(run))

    return declare
