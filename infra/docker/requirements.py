"""Print what pyproject.toml depends on, one a line, so that it can be installed before the code is copied: python requirements.py FILE"""

import sys
import tomllib
from pathlib import Path

print("\n".join(tomllib.loads(Path(sys.argv[1]).read_text())["project"]["dependencies"]))
