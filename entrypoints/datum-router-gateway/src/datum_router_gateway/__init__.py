"""The gateway process of a container: settings from the environment, then `datum_router_runtime` does the rest."""
