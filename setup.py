"""Installs `orthcr`, for other programs and as a command, the packages that it is made of, and what they need.

Editable only, `pip install -e .`: `configs/`, `assets/`, the data sets and train.py stay in the clone, as in CoOp.
`datasets` is not among the packages: installed, it would shadow Hugging Face's.
"""

from setuptools import find_packages, setup

ONNX = ["onnx>=1.16", "onnxscript>=0.5", "onnxruntime>=1.18"]

setup(
    name="orthcr",
    version="1.4.0",
    description="Few-shot adaptation of CLIP by orthogonal fine-tuning, beside prompt learning, on Dassl's API",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["orthcr", "orthcr.*", "trainers", "trainers.*", "dassl", "dassl.*"]),
    entry_points={"console_scripts": ["orthcr = orthcr.__main__:main"]},
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "numpy",
        "pillow>=10.1",  # has_transparency_data
        "yacs",
        "tabulate",
        "tqdm",
        "tensorboard",
        "safetensors",
        "scikit-learn",  # Digits
        "scipy",  # annotations in MATLAB's format
        "matplotlib",  # the pictures of make demo, make protocols, report.py and predict.py
        "gdown",  # downloads from Google Drive
        "clip-anytorch>=2.6",  # OpenAI's clip, which is on no package index under its own name
        "setuptools<81",  # clip asks pkg_resources for a version; newer setuptools have none
    ],
    extras_require={
        "dev": ["pytest", "pytest-xdist", "ruff"],
        "cluster": ["ray>=2.52"],  # --engine ray
        "serve": ["gradio>=6"],  # predict.py --serve
        "onnx": ONNX,  # export.py --to onnx, and models that it made
        "trackers": ["wandb>=0.19", "mlflow-skinny>=2.20", "sqlalchemy", "alembic"],  # TRAIN.TRACKER wandb, mlflow
        "export": ["open_clip_torch>=3.0", "transformers>=4.56", "peft>=0.16", *ONNX],
    },
)
