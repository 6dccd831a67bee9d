"""The soak: mixed load with faults against a real gateway on loopback, and a verdict on every single request."""
