"""What a network can do if only a chosen few of its parameters train."""

__version__ = '0.1.0'
