"""Datum Router."""
