"""`make bench`: measure every goal beside its floor, and write bench/REPORT.md with its plots.

Floor and service take turns, and what counts is the ratio of their medians: absolute figures say little on a shared
machine. A goal that is missed stands in the report as missed.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bench import report
from bench.figures import FULL, QUICK, Effort, Figure, Measures, Plots, of_growth
from bench.replicas import of_replicas
from bench.servers import Bench, postgresql, redis

#: What asks: as fast as it goes, and at a fixed rate.
PROGRAMS = ("wrk", "hey")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="in some minutes, with less certainty and fewer rows")
    effort = QUICK if parser.parse_args().quick else FULL
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        sys.exit(f"make bench needs {' and '.join(missing)}: apt-get install {' '.join(missing)}")
    figures, plots, is_whole = [], Plots(), False
    try:
        for figure in _figures(effort, plots):
            print(f"{figure.what}: {figure.measured} ({figure.goal})", flush=True)
            figures.append(figure)
        is_whole = True
    finally:
        report.write(figures, plots, effort, is_whole=is_whole)
        print(f"wrote {report.REPORT}")


def _figures(effort: Effort, plots: Plots) -> Iterator[Figure]:
    with ExitStack() as stack:
        store = stack.enter_context(redis())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mfa-bench-")))
        databases = {"SQLite": f"sqlite:///{folder}/mfa.db", "PostgreSQL": stack.enter_context(postgresql())}
        for name, database in databases.items():
            bench = Bench(folder / name, database, store)
            yield from Measures(bench, name, effort, plots).figures()
        for name, database in databases.items():
            # Nobody seals millions of events that were never sealed: the sealer would be at it all the while.
            bench = Bench(folder / name, database, store, MFA_SEAL_SECONDS="0")
            if name == "PostgreSQL":
                yield from of_replicas(bench, effort)
            yield from of_growth(bench, name, effort, plots)


if __name__ == "__main__":
    main()
