"""The methods, one file each. `train.py` imports every file of this package, and each registers its trainer."""

import warnings

# OpenAI's clip imports pkg_resources, which prints this warning on every import
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
