"""One method, one file. `train.py` imports every file in here; each registers its trainer."""

import warnings

# OpenAI's clip still asks pkg_resources for a version, on every import
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
