"""The command `python -m trainer.pretrain`."""

import sys

from trainer.pretraining.pretrain import main

if __name__ == "__main__":
    sys.exit(main())
