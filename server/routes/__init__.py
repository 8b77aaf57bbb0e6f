"""One file per noun. A route parses, makes one store call, and returns."""
