"""Packaging of metapeft. Lower bounds only: an upper bound in a library ages into a fault."""

import re
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (root / "metapeft" / "__init__.py").read_text()).group(1)

setup(
    name="metapeft",
    version=version,
    description="Bilevel meta-learning of parameter-efficient updates in PyTorch",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["metapeft", "metapeft.*", "theory", "theory.*"]),
    package_data={"metapeft": ["py.typed", "**/*.json", "**/*.gz", "**/*.html", "**/*.txt"], "theory": ["*.html"]},
    install_requires=[
        "torch>=2.6",
        "numpy>=1.26",
        "scipy>=1.11",
        "tensorly>=0.9",
        "safetensors>=0.4",
        "cyclopts>=4.0",
        "rich>=13.0",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "pillow>=10.0",
    ],
    entry_points={"console_scripts": ["metapeft = metapeft.__main__:main"]},
)
