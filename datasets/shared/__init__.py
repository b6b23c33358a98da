"""Code that several data sets share; no module here registers a data set."""
