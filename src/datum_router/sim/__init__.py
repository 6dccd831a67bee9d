"""Simulations of policies on virtual time: what they come to over minutes, in seconds, the same for every seed."""
