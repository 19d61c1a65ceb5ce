from __future__ import annotations

from pillsnap.exporting.float_search import (
    AGREEMENT_GOAL,
    LEAST_AGREEMENT,
    MOST_FLOAT_MACS,
    MOST_TRIALS,
    Loss,
    choose_float_layers,
    chosen,
    gates,
)
from pillsnap.exporting.qdq import Layer

LAYERS = tuple(Layer(f"conv{i:02d}", 100, gate=i in (3, 7)) for i in range(40))
BAD = "conv20"


def measure(float_layers: frozenset[str]) -> Loss:
    """All the harm is done by one layer, and a little by each other one."""
    eight_bit = [layer.name for layer in LAYERS if layer.name not in float_layers]
    error = 0.05 * (BAD in eight_bit) + 0.00005 * len(eight_bit)
    return Loss(0.9 if BAD in eight_bit else 0.999, error)


def test_the_harmful_layer_is_found_and_little_else() -> None:
    trials = choose_float_layers(LAYERS, measure)
    choice = chosen(trials)
    assert BAD in choice.float_layers
    assert choice.loss.reaches(AGREEMENT_GOAL)
    assert len(choice.float_layers) <= 2 + 4  # the gates, and one part
    assert gates(LAYERS) == {"conv03", "conv07"} <= choice.float_layers


def test_nothing_is_tried_where_8_bits_do() -> None:
    trials = choose_float_layers(LAYERS, lambda _: Loss(LEAST_AGREEMENT, 0.01))
    assert [trial.tried for trial in trials] == ["gates only"]
    assert len(choose_float_layers(LAYERS, lambda _: Loss(LEAST_AGREEMENT - 0.001, 0.01))) > 1
    assert len(choose_float_layers(LAYERS, lambda _: Loss(1.0, 0.011))) > 1


def test_what_was_chosen_by_its_images_has_to_do_better_on_them() -> None:
    def close(float_layers: frozenset[str]) -> Loss:
        loss = measure(float_layers)
        return Loss(LEAST_AGREEMENT if loss.agreement > 0.9 else 0.9, loss.error)

    assert len(choose_float_layers(LAYERS, close)) > len(choose_float_layers(LAYERS, measure))


def test_the_trials_and_the_share_in_float_are_bounded() -> None:
    trials = choose_float_layers(LAYERS, lambda names: Loss(0.5, 1 - len(names) / 100))
    assert len(trials) <= MOST_TRIALS
    assert len(chosen(trials).float_layers) <= MOST_FLOAT_MACS * len(LAYERS)
    assert len(chosen(trials).float_layers) > len(gates(LAYERS))


def test_what_makes_it_worse_is_not_kept() -> None:
    trials = choose_float_layers(LAYERS, lambda names: Loss(0.9, 0.02 + len(names) / 1000))
    assert chosen(trials).float_layers == gates(LAYERS)


def test_the_same_measurements_give_the_same_choice() -> None:
    assert choose_float_layers(LAYERS, measure) == choose_float_layers(LAYERS, measure)
