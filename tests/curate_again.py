"""A curation in a process of its own, which a test kills: CONFIG.pickle WORK OUT."""

import pickle
import sys
from pathlib import Path

from data_prep.curate import curate
from data_prep.curation.authors import load_author_key

if __name__ == "__main__":
    pickled, work, out = map(Path, sys.argv[1:])
    config, key_file = pickle.loads(pickled.read_bytes())  # the test wrote it
    curate(config, work, out, load_author_key(key_file, work=work, out=out), acknowledge_missing=True)
