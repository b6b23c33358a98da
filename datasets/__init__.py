"""One data set, one file. `train.py` imports every file in here; each registers its data set."""
