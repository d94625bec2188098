"""How far something is that takes minutes, in one line that is written over."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import typer

#: Seconds between two lines.
_PAUSE = 0.5
_WIDTH = 20


@dataclass(slots=True)
class Progress:
    """Shares that are done, and when each began to be told of."""

    clock: Callable[[], float] = time.monotonic
    begun: dict[str, tuple[float, float]] = field(default_factory=dict)
    shown: float = 0.0

    def show(self, name: str, share: float) -> None:
        """Tell a person how much is done and how long the rest will take."""
        now = self.clock()
        if share < 1 and now - self.shown < _PAUSE:
            return
        self.shown = now
        typer.echo(f"\r\033[K{self.line(name, share)}", err=True, nl=share >= 1)

    def line(self, name: str, share: float) -> str:
        """Return what is told of a share; what was found from earlier at first does not count.

        >>> seconds = iter([0.0, 60.0])
        >>> progress = Progress(clock=lambda: next(seconds))
        >>> progress.line("harm", 0.5)
        '  harm       [##########          ]  50 %'
        >>> progress.line("harm", 0.75)
        '  harm       [###############     ]  75 %, about 1 min left'
        """
        now = self.clock()
        began, first = self.begun.setdefault(name, (now, share))
        done = "#" * int(share * _WIDTH)
        text = f"  {name:<10} [{done:<{_WIDTH}}] {share:4.0%}".replace("%", " %")
        if not first < share < 1:
            return text
        return f"{text}, about {_rounded((now - began) / (share - first) * (1 - share))} left"


def _rounded(seconds: float) -> str:
    """Round a duration as far as it can be known.

    >>> _rounded(7.2), _rounded(59), _rounded(60), _rounded(340)
    ('10 s', '60 s', '1 min', '6 min')
    """
    if seconds < 60:
        return f"{-(-int(seconds) // 10) * 10 or 10} s"
    return f"{-(-int(seconds) // 60)} min"
