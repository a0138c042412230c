"""Started by test_nonfinite_ranks.py: `apps.train` with a poison. Arguments: the poison as JSON, then the program's."""

import json
import sys

from apps._program import run
from tests.poison import Poison
from topklm.train import TrainConfig, train

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    Poison(settings["where"], set(settings["steps"]), settings["rank"], settings.get("once", False)).install()
    run(train, TrainConfig, "train", __doc__, sys.argv[2:])
