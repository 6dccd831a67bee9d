"""Datum Router core: plugins."""
