"""Datum Router entrypoint."""
