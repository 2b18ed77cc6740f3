"""The files of a run and its progress on the terminal.

- `run_directory`: configuration, metrics and events; `run_place`: a run in a bucket.
- `record`: reads a run back.
- `checkpoint`: Orbax checkpoints; `compiled`: compiled programs on disk.
- `operations`: all that watches a long run: `process_log`, `watchdog`, `profiler` and `goodput`.
- `progress`: the terminal output of training.
"""
