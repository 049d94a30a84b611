"""Settings: defaults, presets and recipes; how they are read, checked and built from."""
