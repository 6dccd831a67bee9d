"""The benchmark harness: Datum Router and its peers under the same load, in turn, on one core."""
