"""`python -m asymcir_edge` is the `asymcir` command."""

import sys

from asymcir_edge.cli import main

sys.exit(main())
