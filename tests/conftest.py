"""Make `import oracles` work from every folder of tests, and keep arrays' walk in one thread unless a test says so."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
