"""Which layers stay in float: a greedy search by what they cost in accuracy. Pure: measuring is the caller's.

Its budget is a number of trials, not of seconds: on a slower day it must find the same layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pillsnap.exporting.qdq import Layer

LEAST_AGREEMENT = 0.995
"""Share of photos with the same first answer from which on a variant stands for its source."""
AGREEMENT_GOAL = (1 + LEAST_AGREEMENT) / 2
"""The same of a choice, on the images that it was chosen by: half the difference, as it does a little worse on others.
"""
ERROR_GOAL = 0.01
"""Of the `Loss`: a few hundred images say little of one answer in two hundred. Two nets that 8 bits do no harm have
half of it (docs/decisions/0009)."""
MOST_FLOAT_MACS = 0.35
"""Share of the multiply-accumulates that may stay in float: in float they take two to three times as long."""
MOST_PARTS = 12
"""Between the first and the last layer."""
MOST_TRIALS = 1 + 2 * (MOST_PARTS + 2)


@dataclass(frozen=True)
class Loss:
    """What 8 bits cost, against the same graph in float."""

    agreement: float
    """Share of images with the same first answer."""
    error: float
    """The median image's mean difference of a logit, as a share of its largest logit. The median, because the values of
    a few images are cut off on purpose (``image-median``): they would be all that a mean sees."""

    def reaches(self, agreement: float) -> bool:
        """Both goals are met."""
        return self.agreement >= agreement and self.error <= ERROR_GOAL


@dataclass(frozen=True)
class Trial:
    """One measured choice."""

    tried: str
    """The group that was put in float, in words."""
    float_layers: frozenset[str]
    loss: Loss
    kept: bool


Measure = Callable[[frozenset[str]], Loss]


def gates(layers: Sequence[Layer]) -> frozenset[str]:
    """Names of the layers that stay in float without a trial: cheap, and faster in float for their size."""
    return frozenset(layer.name for layer in layers if layer.gate)


def choose_float_layers(layers: Sequence[Layer], measure: Measure) -> tuple[Trial, ...]:
    """Put groups of layers in float, the most useful one first, until the goals are met or the room is used up.

    Args:
        layers: of the graph, in its order.
        measure: the loss with these layers in float, all others in 8 bits.

    Returns:
        All trials; the last one that was kept is the choice.
    """
    fixed = gates(layers)
    best = Trial("gates only", fixed, measure(fixed), kept=True)
    trials = [best]
    if best.loss.reaches(LEAST_AGREEMENT):
        return tuple(trials)
    macs = {layer.name: layer.macs for layer in layers}
    room = MOST_FLOAT_MACS * sum(macs.values())
    groups = _groups([layer for layer in layers if not layer.gate])
    alone = []
    for name, group in groups:
        loss = measure(fixed | group)
        alone.append((loss.error, name, group))
        trials.append(Trial(f"{name} alone", fixed | group, loss, kept=False))
    for _, name, group in sorted(alone, key=lambda entry: (entry[0], entry[1])):
        together = best.float_layers | group
        if sum(macs[layer] for layer in together) > room:
            continue
        loss = measure(together)
        kept = loss.error < best.loss.error  # steadier than the agreement, of which one image is a step
        trial = Trial(f"and {name}", together, loss, kept)
        trials.append(trial)
        if kept:
            best = trial
        if best.loss.reaches(AGREEMENT_GOAL):
            break
    return tuple(trials)


def chosen(trials: Sequence[Trial]) -> Trial:
    """The last trial that was kept."""
    return [trial for trial in trials if trial.kept][-1]


def _groups(layers: Sequence[Layer]) -> list[tuple[str, frozenset[str]]]:
    """The first and the last layer, each alone, and what lies between in pieces of like number."""
    if not layers:
        return []
    first, *between = layers
    groups = [("the first layer", frozenset({first.name}))]
    if between:
        *between, last = between
        groups.append(("the last layer", frozenset({last.name})))
    pieces = min(MOST_PARTS, len(between))
    for number in range(pieces):
        part = between[number * len(between) // pieces : (number + 1) * len(between) // pieces]
        groups.append((f"part {number + 1:02d} of {pieces}", frozenset(layer.name for layer in part)))
    return groups
