"""`python -m mdc_device` is `mdc-device`."""

import sys

from mdc_device.cli import main

sys.exit(main())
