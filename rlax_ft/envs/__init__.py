"""Environments as pairs of pure functions, adapters from other libraries, and wrappers."""
