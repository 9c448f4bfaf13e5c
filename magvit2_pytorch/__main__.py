"""Entry point of `python -m magvit2_pytorch`, the same as the command `magvit2`."""

import sys

from magvit2_pytorch.cli.main import main

sys.exit(main())
