"""Maps, results and regions: what models say about a slide. No torch."""
