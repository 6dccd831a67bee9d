"""Datum Router core: filters."""
