"""The command `python -m trainer.diffusers_export`."""

import sys

from trainer.weights.diffusers_export import main

if __name__ == "__main__":
    sys.exit(main())
