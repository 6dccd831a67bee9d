"""Outbound decisions: what a destination is, which addresses are closed, and what the policy says. Pure."""
