"""LSTM variational autoencoders of text that do not collapse, trained on one CPU or on many GPU nodes."""

__version__ = "0.1.0"
