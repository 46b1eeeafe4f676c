"""Everything that is known before building stands in pyproject.toml."""

from setuptools import setup

setup()
