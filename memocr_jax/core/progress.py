"""The progress bar of every command."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.text import Text


class ProgressBar:
    """A bar with what is counted, how much of it is done, the time taken and left, and the stage under way.

    Use it as a context manager.

    Args:
        what: what is counted or done, such as "questions".
        total: how much there is, or None until `update` says so.
        done: how much of it was done before.
        console: where the bar is shown; None for stderr.
        transient: whether the bar is removed at the end.
        size: whether bytes are counted, and shown with their rate.
        shown: whether anything is shown at all.
    """

    def __init__(
        self,
        what: str,
        total: float | None = None,
        *,
        done: float = 0,
        console: Console | None = None,
        transient: bool = False,
        size: bool = False,
        shown: bool = True,
    ):
        counts = (DownloadColumn(), TransferSpeedColumn()) if size else (MofNCompleteColumn(),)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            *counts,
            TaskProgressColumn(),
            TimeElapsedColumn(),
            _Left(),
            TextColumn("{task.fields[stage]}", style="dim", markup=False),
            console=console or Console(stderr=True, highlight=False),
            transient=transient,
            disable=not shown,
        )
        self._shown = shown
        self._task = self._progress.add_task(what, total=total, completed=done, stage="", left=None)

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the bar; `say` still works."""
        self._progress.stop()

    def update(self, done: float, total: float | None = None, *, left: str | None = None) -> None:
        """Show that `done` of `total` is done; None leaves the total as it was, and the time left to rich's
        own estimate."""
        self._progress.update(self._task, completed=done, total=total, left=left)

    def stage(self, name: str, done: int | None = None, total: int | None = None) -> None:
        """Show the stage under way, and how much of that is done."""
        count = "" if done is None else f" {done}/{total}"
        self._progress.update(self._task, stage=f"{name}{count}")

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self._shown:
            self._progress.console.print(line, soft_wrap=True, markup=False)


class _Left(ProgressColumn):
    """The time left: the task's own estimate where it has one, else rich's."""

    def render(self, task: Task) -> Text:
        left = task.fields["left"]
        if left is None:
            left = "?" if task.time_remaining is None else duration(task.time_remaining)
        return Text(f"left {left}")


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
