"""Datum Router core: reconcile."""
