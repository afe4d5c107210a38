"""The storm's clients, as a process of their own: says when it begins, then logins a second and what refusals took."""

import json
import sys

from bench import load
from bench.servers import PASSWORD

address, seconds, *names = sys.argv[1:]
print("ready", flush=True)
answers = load.logins(address, [(name, PASSWORD) for name in names], float(seconds), len(names))
print(json.dumps([answers.rate(200), answers.refused_seconds]))
