"""One handler of Ctrl-C and SIGTERM for all commands."""

import signal

import pytest

from memocr_jax.core.signals import PREEMPTED, StopSignals, exit_status


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, PREEMPTED)])
def test_the_first_signal_is_noted_and_the_second_ends_at_once(capfd, number, status):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignals("stopping after this step") as stop:
        assert stop.received is None and exit_status(stop.received) == 0
        signal.raise_signal(number)
        assert stop.received == number and exit_status(stop.received) == status
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert capfd.readouterr().err.count("stopping after this step (once more: at once)") == 1


def test_work_that_can_be_cut_anywhere_is_cut_at_the_first_signal(capfd):
    with StopSignals(at_once=True) as stop, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert exit_status(stop.received) == PREEMPTED
    assert capfd.readouterr().err == ""
