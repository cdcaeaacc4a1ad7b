"""A process that runs the tiny family over slides: ``cohort_run.py HOW OUT SLIDE...``.

It prints ``<slide> <stage>`` for each step and ``<slide>: <status>`` for each outcome. HOW is
``run``, or ``hold``: then it stays at the first step of inference until it is killed.
"""

from __future__ import annotations

import sys
import time

from tiny_family import FAMILY, make_model

from slidelens.engine.cohort import predict_cohort
from slidelens.engine.prediction_table import Outcome
from slidelens.families import FAMILIES
from slidelens.tiling.tissue import TissueSettings

FAMILIES._builtins["tiny"], FAMILIES._loaded["tiny"] = "tiny_family:FAMILY", FAMILY


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(how: str, out: str, slides: list[str]) -> None:
    run = predict_cohort(
        slides, make_model(), out, mpp=1.0, tissue=TissueSettings(method="whole"), device="cpu"
    )
    for event in run:
        if isinstance(event, Outcome):
            say(f"{event.slide_id}: {event.status}")
            continue
        say(f"{event.slide_id} {event.stage}")
        if event.stage == "infer" and how == "hold":
            time.sleep(600)  # until it is killed


main(sys.argv[1], sys.argv[2], sys.argv[3:])
