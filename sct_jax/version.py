"""The version of this package, apart so that build tools read it without importing anything."""

__version__ = "0.1.0"
