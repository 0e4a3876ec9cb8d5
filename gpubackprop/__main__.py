"""``python -m gpubackprop`` is the command ``gpubackprop``."""

import sys

from gpubackprop.cli import script

if __name__ == "__main__":
    sys.exit(script())
