"""The storm's clients, as a process of their own: prints logins, refusals, and how long it lasted."""

import sys

from bench import load
from bench.servers import PASSWORD

address, seconds, *names = sys.argv[1:]
answers = load.logins(address, [(name, PASSWORD) for name in names], float(seconds), len(names))
print(answers.statuses[200], answers.statuses[503], answers.lasted)
