"""The trio driver that all Datum Router entrypoints share: feed, supervisor, workers, probes, admin."""
