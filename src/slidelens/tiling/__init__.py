"""Which boxes of a slide: tissue, grids, annotations."""
