"""The environment variables that switch off usage reports of optional packages. They must be set before the import."""

import os

VARIABLES = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime, which also writes an identifier below the user's cache
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and transformers and open_clip through it
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_X_DISABLE_META": "true",  # of the machine, with the command line and the user's name
    "WANDB_X_DISABLE_MACHINE_INFO": "true",
    "WANDB_X_DISABLE_STATS": "true",
    "WANDB_X_SAVE_REQUIREMENTS": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",  # a convention of several packages
}


def report_nothing():
    """Set the variables that switch off usage reports. A variable that the user has set stays as it is."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
