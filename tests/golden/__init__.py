"""Golden figures: this code against figures made by running the originals.

    python -m tests.golden DIR

reads every <method>.json and <method>.npz of a folder and computes the same figures with the trainers of this
repository in float64. For each case it prints the largest difference, relative to the largest entry of its array, of
the array that is nearest to its tolerance; the exit code is 1 if one is off or missing. What the json files say (sizes
of the CLIP, classes, template, labels, settings, start values) is all that is read.

A method has a module here, named as its json: `Golden`, a subclass of `case.Case`, most often of two lines.
Arrays under published/ are those of the originals' half precision, which nothing here imitates: they are not compared.
"""
