"""Slides: one world over every file format, lazily."""
