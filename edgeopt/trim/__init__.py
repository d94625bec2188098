"""Trim a vocabulary: pieces that a task's texts cannot produce leave tokenizer and model."""

from edgeopt.trim.vocabulary import Trimmed, trim_vocabulary

__all__ = ["Trimmed", "trim_vocabulary"]
