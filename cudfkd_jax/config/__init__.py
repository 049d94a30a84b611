"""Settings: defaults and presets, and the code that reads, checks and applies them."""
