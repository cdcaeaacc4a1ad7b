"""Parts of an evaluation: cases, statistics, tables, pictures. No network is run."""
