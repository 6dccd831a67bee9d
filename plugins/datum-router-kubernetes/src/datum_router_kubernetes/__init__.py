"""Datum Router plugin."""
