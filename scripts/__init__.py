# SPDX-License-Identifier: Apache-2.0
"""The bundle's code. On MONAI's command line its errors are told in sentences as soon as anything of it is loaded.

Commands such as `ckpt_export` run no `initialize`, where `scripts.cli.start.begin` stands.
"""

import sys
from pathlib import Path

if Path(sys.argv[0] if sys.argv else "").parts[-3:] == ("monai", "bundle", "__main__.py"):
    from scripts.cli.start import install_error_report, wants_traceback

    install_error_report(wants_traceback(sys.argv))
