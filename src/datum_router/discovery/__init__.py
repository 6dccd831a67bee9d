"""Services of other clusters: what they export, how it is merged, and the EndpointSlices that say so. Pure."""
