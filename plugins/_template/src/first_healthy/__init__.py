"""A Datum Router plugin: prefer the earliest healthy endpoint."""
