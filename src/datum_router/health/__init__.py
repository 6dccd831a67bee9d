"""Datum Router core: health."""
