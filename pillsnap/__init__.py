"""PillSnap: teaches a phone to recognise 100 Korean pills, and ships a model only when it has proven itself."""

from pillsnap.core.process_environment import prepare_environment

prepare_environment()  # before any module of this package imports a library that reads the environment

__version__ = "0.1.0"
