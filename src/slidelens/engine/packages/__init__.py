"""What a model package holds beside weights: manifest, card, golden tensors, checksums."""
