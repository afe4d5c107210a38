"""Every way to fail that we have thought of is shown by a test."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

#: What goes wrong, by the name that marks its tests: `@pytest.mark.faults("Q4")`.
CASES = {
    "Q1": "a worker is killed at any step of a registration",
    "Q2": "a worker is killed between a refresh and its answer",
    "Q3": "a worker is killed between the use of a code and the answer",
    "Q4": "the database is down, at the start or later",
    "Q5": "the database is slow",
    "Q6": "the database is read-only",
    "Q7": "the database's disk is full",
    "Q8": "Redis is down, hangs, is full or read-only",
    "Q9": "Redis has lost everything",
    "Q10": "the clock jumps, or stands still",
    "Q11": "the clocks of two replicas differ",
    "Q12": "workers and replicas are stopped and replaced under load",
    "Q13": "a worker hangs, and is killed, in the middle of a hash",
    "Q14": "workers are forked off an app that was loaded already",
    "Q17": "memory or files leak",
    "Q18": "the hook for notices is down, or slow",
    "Q21": "nobody reads the log",
    "Q22": "whatever it was: right status, one line in the log, a figure, no secret, nobody let in",
    "G12": "several processes count limits",
    "G19": "the store of the limits comes and goes",
    "R8": "clients are slow",
}

#: Prints the cases of each test that is collected, of which each is one line.
LISTING = """
import pytest

class Listing:
    def pytest_collection_finish(self, session):
        for item in session.items:
            for mark in item.iter_markers("faults"):
                print("case", *mark.args)

raise SystemExit(pytest.main(["--collect-only", "-q", "-m", "faults"], plugins=[Listing()]))
"""


@pytest.mark.services
def test_every_case_is_shown_and_no_mark_is_without_one() -> None:
    command = [sys.executable, "-c", LISTING]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert listed.returncode == 0, listed.stdout + listed.stderr
    lines = [line.split()[1:] for line in listed.stdout.splitlines() if line.startswith("case")]
    assert [line for line in lines if not line] == [], "a mark names its case"
    assert {case for line in lines for case in line} == CASES.keys()
