"""Whose turn it is in aggressive training, against the loop of the authors' program, written out by hand."""

import numpy as np
import pytest
import torch

from distvae.methods.lagging import Aggressive, Joint, Turns


def turns(**options) -> Turns:
    return Aggressive(**options).start(torch.zeros(2, dtype=torch.float64))


def published(losses, tokens, most, check):
    """The encoder steps before a decoder step, by their losses and tokens, as He et al. (2019) count them."""
    before, loss, words, step = 1e4, 0.0, 0, 1
    while step < most + 1:
        loss += losses[step - 1]
        words += tokens[step - 1]
        if step % check == 0:
            loss = loss / words
            if before - loss < 0:
                break
            before, loss, words = loss, 0.0, 0
        step += 1
    return min(step, most)


def made(state: Turns, losses, tokens) -> int:
    """The encoder steps until it is the decoder's turn."""
    steps = 0
    while state.part == "encoder":
        state.encoder_moved(torch.tensor(losses[steps]), torch.tensor(tokens[steps]), lambda values: values)
        steps += 1
    assert state.part == "decoder"
    state.decoder_moved()
    return steps


@pytest.mark.parametrize(("most", "check"), [(99, 15), (20, 3), (6, 3), (7, 8), (1, 1), (12, 1)])
def test_the_encoder_moves_while_its_loss_falls(most, check):
    state, rng, seen = turns(max_steps=most, check_every=check), np.random.default_rng(most), set()
    for slope in (-1.0, -0.3, 0.0, 0.3, 1.0, -1.0):
        tokens = rng.integers(20, 90, most).astype(float)
        losses = tokens * (5 + slope * np.arange(most) / most + 0.1 * rng.standard_normal(most))
        steps = made(state, losses.tolist(), tokens.tolist())
        assert steps == published(losses, tokens, most, check)
        seen.add(steps)
    assert len(seen) > 1 or check >= most or most == 6
    assert min(seen) >= min(2 * check, most)  # a check needs one before it


def test_defaults_are_those_of_the_authors_program():
    options = Aggressive()
    state, falling = options.start(torch.zeros(2, dtype=torch.float64)), [float(200 - step) for step in range(99)]
    assert made(state, falling, [1.0] * 99) == 99
    assert made(state, [*falling[:15], *[999.0] * 84], [1.0] * 99) == 30


def test_the_first_step_takes_the_decoders_batch_and_others_draw_theirs():
    state = turns(max_steps=400, check_every=500)
    drawn = []
    for _ in range(400):
        drawn.append(state.batch(7, range(11), 1, 2, 3))
        assert state.batch(7, range(11), 1, 2, 3) == drawn[-1]  # from where it is, not from what was drawn before
        state.encoder_moved(torch.tensor(1.0), torch.tensor(1.0), lambda values: values)
    assert drawn[0] == 7
    assert set(drawn) == set(range(11))
    assert np.bincount(drawn).max() < 70  # 36 are expected
    assert state.part == "decoder"
    assert state.batch(7, range(11), 1, 2, 3) == 7
    state.decoder_moved()
    for key in ((8, 1, 2, 3), (7, 2, 2, 3), (7, 1, 1, 3), (7, 1, 2, 4)):
        other = turns(max_steps=400, check_every=500)
        found = []
        for _ in range(20):
            found.append(other.batch(key[0], range(11), *key[1:]))
            other.encoder_moved(torch.tensor(1.0), torch.tensor(1.0), lambda values: values)
        assert found != drawn[:20]


def test_both_move_together_once_the_mutual_information_falls():
    state, parts = turns(), []
    for nats in (-0.01, -0.02, 0.9, 0.9, 0.8, 2.0):
        state.end_epoch(nats)
        parts.append(state.part)
    assert parts == ["encoder"] * 4 + ["all"] * 2
    assert state.batch(7, range(11), 1, 2, 3) == 7


def test_skipped_steps_count_no_token():
    state = turns(max_steps=9, check_every=2)
    # Both steps of the second interval are skipped: it is left out of the comparison.
    assert made(state, [8.0, 8.0, 0.0, 0.0, 9.0, 9.0], [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]) == 6


@pytest.mark.parametrize("at", range(12))
def test_turns_resume_where_they_were(at):
    """From any step, with each rank's own sums."""
    losses, tokens = [9.0, 9.0, 8.0, 8.0, 7.0, 7.0, 7.5, 7.5], [1.0] * 8
    state, straight, broken = turns(max_steps=99, check_every=2), [], []

    def move(state, parts):
        parts.append((state.part, state.batch(0, range(11), 1, 2, 3)))
        if state.part == "decoder":
            state.decoder_moved()
        else:
            loss, count = torch.tensor(losses[state.steps]), torch.tensor(tokens[state.steps])
            state.encoder_moved(loss, count, lambda values: values)

    for step in range(18):
        if step == at:
            saved, own = state.state_dict(), {name: value.clone() for name, value in state.own_state().items()}
            other = turns(max_steps=99, check_every=2)
            other.load_state_dict(saved)
            other.own_state()["turns"].copy_(own["turns"])
        move(state, straight)
        if step >= at:
            move(other, broken)
    assert broken == straight[at:]
    assert [part for part, _ in straight].count("decoder") == 2


def test_joint_training_moves_all():
    state = Joint().start(torch.zeros(2, dtype=torch.float64))
    for nats in (0.5, 0.1):
        assert (state.part, state.batch(3, range(11), 1, 2, 3)) == ("all", 3)
        state.decoder_moved()
        state.end_epoch(nats)
    assert (state.state_dict(), state.own_state()) == ({}, {})
    state.load_state_dict({})  # of a checkpoint that knows no turns
