"""Subjects whose abilities are set by hand, so that what an experiment measures can be compared with what is true."""

import math
from functools import lru_cache

import numpy as np
from scipy.stats import binom

from imp_kit.experiments.runs import Case, _digest
from imp_kit.experiments.stats import Share, wilson


class Planted:
    """Answers each case with what `reply(case, rng)` says; each case has random numbers of its own."""

    def __init__(self, cases: list[Case], reply, seed: int):
        self.replies = {
            (_digest(case.picture), case.question): reply(case, np.random.default_rng([seed, number]))
            for number, case in enumerate(cases)
        }
        self.asked = 0

    def ask(self, picture, question, **settings):
        self.asked += 1
        return self.replies[_digest(picture), question]


def answered(cases: list[Case], reply, seed: int) -> list[dict]:
    """What a run of a planted subject would hold, without pictures and files: cheap enough for hundreds of seeds."""
    return [
        {
            "sample_id": case.id,
            "factors": case.factors,
            "truth": case.truth,
            "seed": case.seed,
            "question": case.question,
            "answer": reply(case, np.random.default_rng([seed, number])),
            "status": "ok",
        }
        for number, case in enumerate(cases)
    ]


@lru_cache
def _interval(right: int, total: int) -> Share:
    return wilson(right, total)


def coverage(total: int, rate: float) -> float:
    """The exact probability that the interval of `total` samples holds the true rate: summed over the binomial."""
    held = [k for k in range(total + 1) if _interval(k, total).low <= rate <= _interval(k, total).high]
    return float(binom.pmf(held, total, rate).sum())


def check_calibration(found: dict[str, list[tuple[Share, float]]]) -> None:
    """Of many measured shares with their true rates: the intervals hold in 19 of 20, and nothing is measured askew.

    Twenty seeds cannot show the first. Where 95 % is exactly true, 19 or 20 of 20 hold in 74 % of tries for one measure
    alone, so a test of 19 of 20 would pass only with seeds that were picked. Over hundreds of seeds the number that
    hold must be the one that the binomial gives for these rates, which is 19 of 20 or more on average; and all samples
    together must have the rate that was planted. Both within 3.5 standard errors, which chance leaves once in 2,000.
    """
    for name, pairs in found.items():
        assert len(pairs) >= 400
        expected = [coverage(share.total, rate) for share, rate in pairs]
        assert np.mean(expected) >= 0.95, name
        held = sum(share.low <= rate <= share.high for share, rate in pairs)
        assert abs(held - sum(expected)) <= 3.5 * math.sqrt(sum(c * (1 - c) for c in expected)), (name, held)
        askew = sum(share.right - share.total * rate for share, rate in pairs)
        assert abs(askew) <= 3.5 * math.sqrt(sum(s.total * rate * (1 - rate) for s, rate in pairs)), (name, askew)
