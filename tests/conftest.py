"""Make `import oracles` and `import benchmarks` work from every folder of tests, and keep arrays' walk in one thread
unless a test says so."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
