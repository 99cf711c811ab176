"""Big-Math's prompts by how often each was solved in 64 responses, from 0 to 64 times: counts, and nothing else of it.

They are the ones that arXiv 2607.00152 computes its figures from.
"""

import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "data" / "big_math_counts.json"
COUNTS = np.array(json.loads(FILE.read_text()))
