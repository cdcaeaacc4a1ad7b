"""What panels show and do, as plain Python: no Qt, no window."""
