"""A trained model in use: predictions, exports to the formats of other libraries, the web page."""

import trainers  # before `clip`, whose warning it silences
