"""Datum Router core: registry."""
