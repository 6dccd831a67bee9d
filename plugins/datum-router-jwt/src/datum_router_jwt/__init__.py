"""Datum Router plugin: verify JSON Web Tokens."""
