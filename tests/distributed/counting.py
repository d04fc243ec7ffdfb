"""A training under torch's profiler: writes what collectives one process took part in, by kind and shape, to a file.

The profiler sees them where they are carried out, DDP's own included.
"""

import collections
import json
import os
import sys
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from distvae.train import main

with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
    code = main(sys.argv[2:])
seen = collections.Counter(
    f"{event.name.removeprefix('gloo:')} {event.input_shapes[0]}"
    for event in profiler.events()
    if event.name.startswith("gloo:")
)
if os.environ["RANK"] == "0":
    Path(sys.argv[1]).write_text(json.dumps(seen))
sys.exit(code)
