"""Public test data and conformance suites, shipped so that plugins can use them."""
