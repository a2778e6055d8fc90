"""Whether this copy of raftkv is the compiled one of `make compiled`: figures and reports name what they speak of."""

from raftkv import __version__, histogram

COMPILED = not str(histogram.__file__).endswith(".py")
VERSION = f"{__version__} (compiled)" if COMPILED else __version__
