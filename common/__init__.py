"""Shared basics: user-facing errors, atomic files, random seeds."""
