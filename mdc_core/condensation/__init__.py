"""The algorithm: synthetic images are learned so that every prefix of them trains well."""
