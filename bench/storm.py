"""The storm's clients, as a process of their own: prints how long it lasted, logins, refusals, how slow those were."""

import sys

from bench import load
from bench.servers import PASSWORD

address, seconds, *names = sys.argv[1:]
answers = load.logins(address, [(name, PASSWORD) for name in names], float(seconds), len(names))
slowest = load.percentile(answers.refused_seconds, 0.99)
print(answers.lasted, answers.statuses[200], answers.statuses[503], slowest)
