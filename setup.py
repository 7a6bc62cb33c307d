"""Packages and extras; what they need is listed in requirements/."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def requirements(*names: str) -> list[str]:
    """Requirement lines of requirements/<name>.txt."""
    lines = [line for name in names for line in (HERE / "requirements" / f"{name}.txt").open()]
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


setup(
    name="tokensparse",
    version="0.1.0",
    description="Vision transformers with fewer tokens, for classification and dense prediction",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["tokensparse", "tokensparse.*"]),
    install_requires=requirements("runtime"),
    extras_require={
        "det": requirements("det"),
        "seg": requirements("seg"),
        "demo": requirements("demo"),
        "export": requirements("export"),
        "dev": requirements("demo", "tests", "export"),
    },
)
