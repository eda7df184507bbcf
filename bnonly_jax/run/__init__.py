"""What a run writes and hears: folder, checkpoints, metrics, plots; other processes, signals."""
