"""Deployment of a trained model: predictions, exports to the formats of other libraries, and a web page."""

import trainers  # before `clip`, because it hides a warning of `clip`
