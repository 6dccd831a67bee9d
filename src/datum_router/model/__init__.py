"""Datum Router core: model."""
