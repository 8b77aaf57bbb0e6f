"""What a run is told and what it will take: settings, presets, estimates. No torch."""
