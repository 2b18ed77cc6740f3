"""What a run keeps: its directory, its checkpoints, its logs and its progress bar."""
