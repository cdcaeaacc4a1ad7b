"""What the panels show and what follows from a click, as plain Python: no Qt, no window."""
