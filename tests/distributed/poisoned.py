"""A run in which the last rank's loss is not a number in the 15th step. The arguments are the program's."""

import math
import os
import sys

from distvae import train as program

step, kl_per_dimension = program.Trainer._step, program.kl_per_dimension
now = 0


def note(self, *arguments):
    global now
    now = self.step
    return step(self, *arguments)


def poisoned(mean, log_variance):
    here = now == 15 and int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    return kl_per_dimension(mean, log_variance) * (math.nan if here else 1)


program.Trainer._step, program.kl_per_dimension = note, poisoned
sys.exit(program.main(sys.argv[1:]))
