"""Unguessable strings that mean nothing by themselves: ids, and later tokens."""

import secrets


def new_id() -> str:
    """128 random bits in 22 URL-safe characters: never reused, and telling nothing of when or how many."""
    return secrets.token_urlsafe(16)
