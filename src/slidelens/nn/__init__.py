"""Networks and training mathematics: torch only, no slides, no files."""
