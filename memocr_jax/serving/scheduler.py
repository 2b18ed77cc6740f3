"""One thread owns the engine: waiting requests join the batch that is being decoded."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from memocr_jax.config import SamplingConfig
from memocr_jax.core.types import Completion
from memocr_jax.engine import PromptGroup
from memocr_jax.runs.compiled import free_programs_if_many

if TYPE_CHECKING:
    from flax import nnx

log = logging.getLogger("memocr_jax.serve")

SESSION_GROUPS = 10_000
"""After so many groups a call of the engine ends and a new one begins, so that its records stay small."""

Watch = Callable[[int, np.ndarray], bool]
"""Called every few tokens with (sibling, its tokens so far i32[n]); False ends that sibling."""


@runtime_checkable
class Sampler(Protocol):
    """The part of `memocr_jax.engine.Engine` that the scheduler uses."""

    def generate(self, params, groups, max_new_tokens, sampling, **hooks) -> list[list[Completion]]: ...


class Cancelled(Exception):
    """The work was cancelled: its client has gone, or the scheduler is closed."""


@dataclasses.dataclass(eq=False)
class Ticket:
    """A prompt group that was given to the scheduler."""

    group: PromptGroup
    watch: Watch
    future: Future[list[Completion]] = dataclasses.field(default_factory=Future)
    cancelled: bool = False

    def __post_init__(self) -> None:
        # Only `cancel` ends it: a future that was cancelled from outside would refuse a result.
        self.future.set_running_or_notify_cancel()

    def cancel(self) -> None:
        """Cancel it: its place in the batch is free within a few tokens. The future raises `Cancelled`."""
        self.cancelled = True


class Scheduler:
    """Feeds one engine from many threads. `close` finishes what was submitted, then ends the thread."""

    def __init__(self, engine: Sampler, params: nnx.State, max_new_tokens: int):
        """`max_new_tokens`: the most that any group may ask for."""
        self._engine, self._params, self.max_new_tokens = engine, params, max_new_tokens
        self._waiting: deque[Ticket] = deque()
        self._live: dict[int, Ticket] = {}
        self._taken = 0
        """Groups given to the present call of the engine."""
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Groups that are not yet in the batch."""
        return len(self._waiting)

    @property
    def decoding(self) -> int:
        """Groups in the batch."""
        return len(self._live)

    def submit(self, group: PromptGroup, watch: Watch = lambda sibling, tokens: True) -> Ticket:
        """Queue a group. It names its own `sampling` and `max_new_tokens`. Raises `Cancelled` when closed."""
        ticket = Ticket(group, watch)
        with self._changed:
            if self._closed:
                raise Cancelled("the server is shutting down")
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def close(self) -> None:
        """Finish all submitted groups, and refuse new ones."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
            free_programs_if_many()
            self._run()

    def _run(self) -> None:
        """One call of the engine, which lasts as long as there is something to do."""
        self._taken = 0
        groups = self._take()
        if not groups:
            return
        try:
            self._generate(groups, more=self._take)
        except Exception as error:  # it must not fail the other requests
            log.exception("sampling failed")
            left, self._live = list(self._live.values()), {}
            for ticket in left:
                if len(left) == 1 or ticket.cancelled:
                    _fail(ticket, error)
                else:
                    self._run_alone(ticket)

    def _run_alone(self, ticket: Ticket) -> None:
        """Run one group of a failed call alone: only a group that fails alone gets the error."""
        self._live = {0: ticket}
        try:
            self._generate([ticket.group])
        except Exception as error:
            log.exception("sampling failed alone")
            self._live.clear()
            _fail(ticket, error)

    def _generate(self, groups: Sequence[PromptGroup], **hooks: Callable) -> None:
        self._engine.generate(
            self._params,
            groups,
            self.max_new_tokens,
            SamplingConfig(),
            watch=self._watch,
            finished=self._finish,
            **hooks,
        )

    def _take(self) -> list[PromptGroup]:
        """Groups that came since the last look."""
        groups: list[PromptGroup] = []
        if self._taken >= SESSION_GROUPS:
            return groups
        with self._changed:
            while self._waiting:
                ticket = self._waiting.popleft()
                if ticket.cancelled:
                    _fail(ticket, Cancelled())
                    continue
                self._live[self._taken] = ticket
                self._taken += 1
                groups.append(ticket.group)
        return groups

    def _watch(self, index: int, sibling: int, tokens: np.ndarray) -> bool:
        ticket = self._live[index]
        if ticket.cancelled:
            return False
        try:
            return ticket.watch(sibling, tokens)
        except Exception as error:
            log.exception("a watcher failed")
            ticket.cancelled = True
            _fail(ticket, error)
            return False

    def _finish(self, index: int, completions: list[Completion]) -> None:
        ticket = self._live.pop(index)
        if ticket.cancelled:
            _fail(ticket, Cancelled())
        else:
            ticket.future.set_result(completions)


def _whole(group: PromptGroup) -> PromptGroup:
    """A group of one laid out as a chat's, with all but the last token shared, so that both share a batch."""
    if len(group.suffixes) != 1 or group.suffix_images:
        return group
    prompt = np.concatenate([group.prefix, group.suffixes[0]])
    return dataclasses.replace(group, prefix=prompt[:-1], suffixes=(prompt[-1:],))


def _fail(ticket: Ticket, error: BaseException | None) -> None:
    if not ticket.future.done():
        ticket.future.set_exception(error or Cancelled())


class SharedEngine:
    """The scheduler behind the interface of `Engine` that `agent.Agent` uses, for one thread's calls."""

    def __init__(self, scheduler: Scheduler):
        self._scheduler = scheduler
        self._tickets: list[Ticket] = []
        self._cancelled = False
        self.new_tokens = 0
        """Tokens sampled so far."""
        self.prompt_tokens = 0

    def cancel(self) -> None:
        """End the present call and all to come with `Cancelled`. Other threads may call this."""
        self._cancelled = True
        for ticket in list(self._tickets):
            ticket.cancel()

    def generate(
        self,
        params: object,
        groups: Sequence[PromptGroup],
        max_new_tokens: int,
        sampling: SamplingConfig,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[list[Completion]]:
        """As `Engine.generate`; `params` are the scheduler's. Raises `Cancelled`."""
        self._tickets = [
            self._scheduler.submit(
                dataclasses.replace(_whole(group), sampling=sampling, max_new_tokens=max_new_tokens)
            )
            for group in groups
        ]
        if self._cancelled:  # before there were tickets to cancel
            self.cancel()
        results = []
        for ticket in self._tickets:
            results.append(ticket.future.result())
            progress(len(results), len(groups))
        self.new_tokens += sum(len(c.tokens) for completions in results for c in completions)
        self.prompt_tokens += sum(len(g.prefix) + sum(map(len, g.suffixes)) for g in groups)
        return results
