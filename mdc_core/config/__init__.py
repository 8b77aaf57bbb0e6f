"""Settings, presets and estimates of a run. No torch."""
