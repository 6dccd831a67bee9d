"""Datum Router plugin."""

NAME = "files"
"""The name of the source, as settings ask for it."""
