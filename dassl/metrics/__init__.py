"""Accuracy, calibration and distances."""

from .accuracy import compute_accuracy
from .calibration import confidence, expected_calibration_error, fit_temperature
from .distance import compute_distance_matrix, cosine_distance, euclidean_squared_distance
