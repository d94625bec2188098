"""Trim a vocabulary: pieces that a task's texts cannot produce leave tokenizer and model."""

from edgeopt.trim.length import Shortened, trim_length
from edgeopt.trim.vocabulary import Trimmed, trim_vocabulary

__all__ = ["Shortened", "Trimmed", "trim_length", "trim_vocabulary"]
