"""Datum Router core: compiler."""
