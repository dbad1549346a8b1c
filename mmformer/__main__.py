"""``python -m mmformer`` is the command ``mmformer``."""

import sys

from mmformer.cli.main import main

sys.exit(main())
