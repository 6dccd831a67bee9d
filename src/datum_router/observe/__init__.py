"""Datum Router core: observe."""
