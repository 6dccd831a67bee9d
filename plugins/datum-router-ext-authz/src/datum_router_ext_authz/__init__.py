"""Datum Router plugin: ask a service whether a request may pass."""
