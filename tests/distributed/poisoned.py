"""A run in which the last rank's loss is not a number in the 15th step. The arguments are the program's."""

import math
import os
import sys

from distvae import train
from distvae.training import step
from distvae.training.step import TrainStep

make_step, kl_per_dimension = TrainStep.__call__, step.kl_per_dimension
now = 0


def note(self, *arguments):
    global now
    now += 1
    return make_step(self, *arguments)


def poisoned(mean, log_variance):
    here = now == 15 and int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    return kl_per_dimension(mean, log_variance) * (math.nan if here else 1)


def main(arguments):
    TrainStep.__call__, step.kl_per_dimension = note, poisoned
    return train.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
