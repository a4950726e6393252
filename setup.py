"""What goes into a wheel; everything else is in pyproject.toml, which cannot say this.

The folder `configs/` of a checkout is a wheel's `jaxmethods/configs/`: one copy, no code in it.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["jaxmethods*"]), "jaxmethods.configs"],
    package_dir={"jaxmethods.configs": "configs"},
    include_package_data=False,
    package_data={"jaxmethods": ["py.typed"], "jaxmethods.configs": ["*/*.yaml"]},
)
