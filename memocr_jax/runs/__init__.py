"""The files of a run: its directory, checkpoints and logs; and its progress on the terminal."""
