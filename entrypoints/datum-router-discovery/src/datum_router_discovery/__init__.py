"""The discovery daemon as a process of its own: settings from the environment."""
