"""napari: readers, layers, panels."""
