"""A board in front of another one, for tests that change what it does."""

from dataclasses import dataclass

from edgeopt.board import Board, Kind


@dataclass
class Wrapped:
    """Has another board's name and kind; who inherits does something to its calls."""

    inner: Board

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def kind(self) -> Kind:
        return self.inner.kind

    def close(self) -> None:
        self.inner.close()
