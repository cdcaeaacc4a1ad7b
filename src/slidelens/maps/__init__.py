"""What models drew: maps, results, regions. No torch."""
