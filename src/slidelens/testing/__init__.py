"""Public test data and conformance suites, shipped for plugins to use."""
