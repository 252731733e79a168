"""Subjects whose abilities are set by hand, so that what an experiment measures can be compared with what is true."""

import numpy as np

from imp_kit.experiments.record import Case, _digest


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
