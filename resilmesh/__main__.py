"""``python -m resilmesh`` is ``resilmesh``."""

import sys

from resilmesh.cli import main

sys.exit(main())
