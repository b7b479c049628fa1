"""`python -m pipeline.lineage`: see `pipeline.lineage.cli`."""

import sys

from pipeline.lineage.cli import main

sys.exit(main())
