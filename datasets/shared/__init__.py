"""What several data sets need, once each; nothing in here registers a data set."""
