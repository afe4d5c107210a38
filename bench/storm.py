"""The storm's clients, as a process of their own: says when it begins, then how long it lasted and what came back."""

import sys

from bench import load
from bench.servers import PASSWORD

address, seconds, *names = sys.argv[1:]
print("ready", flush=True)
answers = load.logins(address, [(name, PASSWORD) for name in names], float(seconds), len(names))
slowest = load.percentile(answers.refused_seconds, 0.99)
print(answers.lasted, answers.statuses[200], answers.statuses[503], slowest)
