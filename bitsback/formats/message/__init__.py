"""Bits-back messages: labels and weights around a payload that the receiver recovers."""

__all__: list[str] = []
