"""One data set, one file, which registers it: `train.py` imports them all. Beside them:

base.py         what all data sets share: split files, few shots, base and new classes
benchmarks.py   the facts of each, a row: names, folder, size, where its files come from
shared/         what several of them need
tools/          the commands: prepare (download) and verify
"""
