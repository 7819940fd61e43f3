"""Package metadata of coarlib; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

REPORT = ["jinja2>=3.1", "markupsafe>=2.1"]

setup(
    name="coarlib",
    version="0.1.0",
    description="Counterfactual attribution at scale: stores, workers, certified regression, LDS",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    # The specs stay in specs/ and travel as estimate/specs, where coarlib.setups finds them.
    packages=[
        *find_packages(include=["coarlib", "coarlib.*", "estimate", "estimate.*"]),
        "estimate.specs",
    ],
    package_dir={"estimate.specs": "specs"},
    package_data={
        "coarlib": ["py.typed", "report/*.css", "report/*.js", "report/*.html"],
        "estimate": ["*/*.yaml"],
        "estimate.specs": ["*.json", "*.yaml"],
    },
    install_requires=[
        "numpy>=1.26",
        "torch>=2.2",
        "scipy>=1.11",
        "fastargs>=1.2.0",
        "terminaltables>=3.1",  # imported by fastargs, which does not declare it
        "PyYAML>=6.0",
        "numba>=0.59",
        "tqdm>=4.66",
        "scikit-learn>=1.4",  # the digits of coar demo
        "matplotlib>=3.8",
        "xxhash>=3.4",
    ],
    extras_require={
        "report": REPORT,
        "frames": ["pandas>=2.0", "xarray>=2023.1"],
        "tensorboard": ["tensorboard>=2.14"],
        "wandb": ["wandb>=0.16"],
        "mlflow": ["mlflow>=2.10"],
        "hf": ["transformers>=4.40", "safetensors>=0.4", "huggingface_hub>=0.23"],
        "kronfluence": ["kronfluence>=1.0"],
        "slurm": ["submitit>=1.5"],
        "ffcv": ["ffcv==1.0.2", "pillow"],
        # fast_l1 is not on the package index; it needs CUDA and cupy.
        "fast_l1": ["fast_l1 @ git+https://github.com/MadryLab/fast_l1", "cupy-cuda12x"],
        "dev": [
            *REPORT,
            "pandas>=2.0",
            "xarray>=2023.1",
            "coverage>=7.4",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "hypothesis>=6.100",
            "ruff>=0.6",
            "mypy>=1.10",
            "types-PyYAML",
            "submitit>=1.5",
        ],
        "docs": [
            "mkdocs>=1.6",
            "mkdocs-material>=9.5",
            "mkdocstrings[python]>=0.26",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "ipykernel>=6.29",
        ],
    },
    entry_points={"console_scripts": ["coar = coarlib.commands.__main__:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
