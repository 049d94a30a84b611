"""Settings: defaults, presets and recipes, and the code that reads, checks and applies them."""
