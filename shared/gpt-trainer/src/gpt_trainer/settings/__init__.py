"""What a run is to do: sections of frozen settings, presets, TOML files and flags."""
