"""Datum Router core: routing."""
