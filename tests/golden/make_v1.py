"""Wrote v1.safetensors, once; kept to show what is in it. Never run it again for version 1."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_ticketfile import GOLDEN, make_ticket

make_ticket().save(GOLDEN)
GOLDEN.with_suffix(".id").write_text(make_ticket().id + "\n")
