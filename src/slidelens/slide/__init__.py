"""Slides of every file format behind one lazy class."""
