"""Parts of a model package: manifest, card, golden tensors, checksums, fetching."""
