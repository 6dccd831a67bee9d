"""Datum Router core: balancing."""
