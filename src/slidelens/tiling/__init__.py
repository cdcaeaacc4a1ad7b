"""Tissue, tile grids and annotations."""
