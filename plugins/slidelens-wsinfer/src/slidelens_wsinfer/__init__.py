"""WSInfer model folders in SlideLens: a family that runs them, commands that read and write."""
