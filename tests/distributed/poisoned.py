"""A run in which the last rank's loss is not a number in the 4th step of the second epoch of training, which is the
15th step of a run without pretraining. The arguments are the program's."""

import math
import os
import sys

from distvae import train
from distvae.training import step
from distvae.training.step import TrainStep

make_step, kl_per_dimension = TrainStep.__call__, step.kl_per_dimension
now: tuple = ()


def note(self, split, batch, key, *arguments):
    global now
    now = key
    return make_step(self, split, batch, key, *arguments)


def poisoned(mean, log_variance):
    here = now == ("train", 2, 4) and int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    return kl_per_dimension(mean, log_variance) * (math.nan if here else 1)


def main(arguments):
    TrainStep.__call__, step.kl_per_dimension = note, poisoned
    return train.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
