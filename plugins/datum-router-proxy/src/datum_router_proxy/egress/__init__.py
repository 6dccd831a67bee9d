"""Outbound traffic: the forward proxy, TLS by server name, and the names that destinations have."""
