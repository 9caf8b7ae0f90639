"""The epoch loop on a run of one number: resuming, divergence, history."""

import signal

import pytest
import torch

from dfshield.core.epochs import EpochLoop
from dfshield.core.errors import Diverged
from dfshield.core.rng import generator
from dfshield.core.signals import Stopped, handled


class Walk(EpochLoop):
    """Adds a random number to a tensor and to a plain one in every epoch; each step depends on where it is."""

    def __init__(self, epochs: int = 5, fails: int | None = None, error: type[BaseException] = Diverged) -> None:
        super().__init__("walk", epochs, 2, torch.device("cpu"))
        self.place, self.steps_taken = torch.zeros(2), 0
        self.fails, self.error = fails, error

    def epoch(self, epoch, bar=None):
        for half in range(2):
            self.place += torch.rand(2, generator=generator("walk", epoch, half)) * (1 + self.place)
            self.steps_taken += 1
            if half and epoch == self.fails:
                raise self.error(f"no way in epoch {epoch + 1}")
            if bar is not None:
                bar.update()
        return {"epoch": epoch + 1, "sum": float(self.place.sum())}

    def state(self):
        return {"place": self.place, "steps": self.steps_taken}

    def load(self, state):
        self.place, self.steps_taken = state["place"], state["steps"]

    def describe(self, row):
        return f"walked to {row['sum']:.1f}" if row["epoch"] > 1 else ""


def finished(epochs: int = 5) -> Walk:
    made = Walk(epochs)
    made.fit()
    return made


def test_all_epochs_are_run_and_told(capsys):
    made = finished()
    assert [row["epoch"] for row in made.history] == [1, 2, 3, 4, 5]
    assert made.diverged == "" and made.steps_taken == 10
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("walked")]
    assert told == [f"walked to {row['sum']:.1f}" for row in made.history[1:]]


@pytest.mark.parametrize("stop", range(5))
def test_a_stopped_run_goes_on_to_the_same_state(tmp_path, stop, capsys):
    path = tmp_path / "state" / "epoch.pt"
    stopped = Walk(fails=stop, error=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(path)
    assert path.is_file() == (stop > 0)
    resumed = Walk()
    resumed.fit(path)
    whole = finished()
    assert torch.equal(resumed.place, whole.place)
    assert (resumed.steps_taken, resumed.history) == (10, whole.history)
    assert (f"resuming after epoch {stop} of 5" in capsys.readouterr().err) == (stop > 0)


def test_a_finished_run_is_not_run_again(tmp_path):
    path = tmp_path / "epoch.pt"
    first, again = Walk(), Walk(fails=0, error=AssertionError)
    first.fit(path)
    again.fit(path)
    assert torch.equal(again.place, first.place) and again.history == first.history


@pytest.mark.parametrize("fails", [0, 3])
def test_divergence_brings_back_the_last_whole_epoch(tmp_path, capsys, fails):
    made = Walk(fails=fails)
    made.fit(tmp_path / "epoch.pt")
    whole = finished(fails)
    assert torch.equal(made.place, whole.place) and made.steps_taken == 2 * fails
    assert made.history == whole.history
    assert made.diverged == f"no way in epoch {fails + 1}; these are the weights after epoch {fails}"
    assert f"walk diverged: {made.diverged}" in capsys.readouterr().err


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError):
        Walk(fails=1, error=ZeroDivisionError).fit()


class Other(Walk):
    """A run that holds something else, and is changed before it notices that its state does not fit."""

    def state(self):
        return {"steps": self.steps_taken, "position": self.place}

    def load(self, state):
        self.steps_taken = state["steps"]
        self.place = state["position"]


def test_a_state_that_does_not_fit_is_not_taken(tmp_path, capsys):
    path = tmp_path / "epoch.pt"
    Walk(epochs=3).fit(path)
    made = Other()
    assert made._resume(path) == 0
    assert (made.steps_taken, made.place.tolist(), made.history) == (0, [0, 0], [])
    assert capsys.readouterr().err.endswith(
        f"{path}: damaged, or of another program or run; what it held is made again\n"
    )


def test_a_signal_ends_a_run_at_the_next_epoch(tmp_path, monkeypatch):
    path, whole = tmp_path / "epoch.pt", finished()
    genuine = Walk.epoch

    def epoch(self, number, bar=None):
        if number == 2:
            signal.raise_signal(signal.SIGTERM)
        return genuine(self, number, bar)

    monkeypatch.setattr(Walk, "epoch", epoch)
    with handled(), pytest.raises(Stopped, match="stopped by SIGTERM; the same command goes on after epoch 3 of 5"):
        Walk().fit(path)
    monkeypatch.undo()
    resumed = Walk()
    resumed.fit(path)
    assert torch.equal(resumed.place, whole.place) and resumed.steps_taken == 10


def test_the_base_class_trains_nothing():
    bare = EpochLoop("bare", 1, 1, torch.device("cpu"))
    for call in (lambda: bare.epoch(0), bare.state, lambda: bare.load({})):
        with pytest.raises(NotImplementedError):
            call()
    assert bare.describe({}) == ""


class Drops(Walk):
    """Draws from the global generator, as dropout does."""

    def __init__(self, seed: int = 0, **settings) -> None:
        super().__init__(**settings)
        self.seed = seed

    def epoch(self, epoch, bar=None):
        self.place += torch.rand(2)
        return super().epoch(epoch, bar)


def test_what_a_network_draws_depends_on_seed_and_epoch_alone(tmp_path):
    whole, path = Drops(), tmp_path / "epoch.pt"
    torch.manual_seed(1)
    whole.fit()
    stopped = Drops(fails=3, error=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(path)
    again = Drops()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again.fit(path)
    assert torch.equal(again.place, whole.place)
    assert torch.equal(torch.get_rng_state(), before)
    other = Drops(seed=1)
    other.fit()
    assert not torch.equal(other.place, whole.place)
