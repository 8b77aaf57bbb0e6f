"""Real and synthetic images: reading, splitting, holding in memory, saving."""
