"""Methods of ten papers as pure, jit-compiled, vmappable JAX functions.

Each method is a subpackage; `jaxmethods.method` says what a method is, and the command line
`jaxmethods train CONFIG.yaml` runs any of them.
"""

__version__ = "0.1.0"
