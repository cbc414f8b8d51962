"""What stands around Lightning's Trainer: meters, tables, checkpoints, interruption, progress, trackers."""
