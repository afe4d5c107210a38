"""Migrations of our tables, shipped as `mfa_service.migrations`."""
