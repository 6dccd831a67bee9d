"""Datum Router core: testing."""
