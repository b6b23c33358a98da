"""The data sets: each has a file, which registers it. `train.py` imports all of them.

base.py         base class: split files, few-shot selection, base and new classes
catalogue.py    a row for each data set: names, folder, size, addresses of its files
shared/         readers of annotations, splits, and the drawing of the embedded data sets
tools/          commands: prepare (download) and verify
"""
