"""`flask mfa …`: what an operator does from a terminal. The commands need no running app, and most no keys."""

from mfa_service.cli import audit, emergency, keys, people, policy, setup, users
from mfa_service.cli.group import mfa

__all__ = ["audit", "emergency", "keys", "mfa", "people", "policy", "setup", "users"]
