"""Datum Router core: policy."""
