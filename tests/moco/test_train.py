"""What a training prints beside its log."""

from baselines.srl import SRL
from moco.config import Pretraining
from moco.train import note_on_drop
from trainer.flags import parse
from trainer.settings import resolve


def settings(cls, *words):
    return resolve(cls, parse(cls, ["DATA", "--model-path", "OUT", *map(str, words)]))


def test_a_drop_of_the_rate_says_why_the_contrastive_loss_may_rise():
    run = settings(Pretraining, "--epochs", 9, "--schedule", 3, 6, 9)
    notes = {epoch: note for epoch in range(10) if (note := note_on_drop(run, epoch))}
    assert list(notes) == [3, 6]  # not after the last epoch
    assert "learning rate 0.003 after epoch 3: the contrastive loss may rise now" in notes[3]
    assert "0.0003 after" in notes[6]
    assert not note_on_drop(settings(Pretraining, "--schedule", 3, "--cos"), 3)
    assert not note_on_drop(settings(SRL, "--schedule", 3), 3)  # no contrast


def test_both_trainings_print_it_once(chain):
    """Two epochs: the scaled schedule is 1 and 1."""
    for script in ("main_moco", "main_distill"):
        assert chain.printed[script].count("learning rate 0.0003 after epoch 1: ") == 1
