"""What an evaluation is made of: cases, statistics, tables, pictures. No network is run."""
