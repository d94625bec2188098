"""Example projects that `edgeopt init --example` lays out."""

from edgeopt.example.layout import ExampleFacts, write_questions

__all__ = ["ExampleFacts", "write_questions"]
