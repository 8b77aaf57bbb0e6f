"""Real images and synthetic ones: read, held in memory, split, and saved."""
