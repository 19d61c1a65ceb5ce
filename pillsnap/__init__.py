"""PillSnap: teaches a phone to recognise 100 Korean pills, and ships a model only when it has proven itself."""

__version__ = "0.1.0"
