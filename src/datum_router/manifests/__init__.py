"""Manifests: what users write, as types; decoding, validation, schema and reference come from these types alone."""
