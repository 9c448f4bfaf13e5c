"""`python -m magvit2_pytorch` is the command `magvit2`."""

import sys

from magvit2_pytorch.cli.main import main

sys.exit(main())
