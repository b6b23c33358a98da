"""The environment variables that switch off usage reports of optional packages. They must be set before the import."""

import os

VARIABLES = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime, which also writes an identifier below the user's cache
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and transformers and open_clip through it
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "1",  # a convention of several packages
}


def report_nothing():
    """Set the variables that switch off usage reports. A variable that the user has set stays as it is."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
