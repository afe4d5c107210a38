"""The benchmark harness: `make bench`. Every figure is a ratio to a floor that was measured beside it."""
