"""Example projects that `edgeopt init --example` lays out."""

from edgeopt.example.fashion import write_fashion
from edgeopt.example.layout import ExampleFacts, write_questions
from edgeopt.example.trec import write_trec

__all__ = ["ExampleFacts", "write_fashion", "write_questions", "write_trec"]
