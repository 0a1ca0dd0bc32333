"""Many replays over a grid of parameters: sweeps and where their curves cross."""
