"""How all pictures write their axes, and the colours of their lines."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
  "#000000", "#E69F00", "#56B4E9", "#009E73",
  "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY = "#666666"
# Losses have three decimals, so an axis shows at least this range.
LEAST_RANGE = 0.01


def style(axes: "Axes") -> None:
  """Draws a light grid behind the lines, and no frame."""
  axes.spines[["top", "right"]].set_visible(False)
  axes.grid(color="#e6e6e6", linewidth=0.8)
  axes.set_axisbelow(True)


def loss_axis(axes: "Axes") -> None:
  """Makes the y axis one of losses, once everything is drawn."""
  low, high = axes.get_ylim()
  margin = max(0.0, (LEAST_RANGE - (high - low)) / 2)
  axes.set_ylim(low - margin, high + margin)
  axes.set_ylabel("loss (nats)")
  axes.yaxis.set_major_formatter("{x:.3f}")


def step_axis(axes: "Axes") -> None:
  """Makes the x axis one of steps."""
  from matplotlib.ticker import EngFormatter, MaxNLocator

  axes.set_xlabel("steps")
  axes.xaxis.set_major_locator(
    MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10])
  )
  axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def flop_axis(axes: "Axes") -> None:
  """Makes the x axis one of FLOPs, once everything is drawn."""
  power = 3 * int(math.log10(max(axes.get_xlim()[1], 1.0)) // 3)
  axes.set_xlabel(f"training cost ($10^{{{power}}}$ FLOPs)")
  axes.xaxis.set_major_formatter(lambda x, _: f"{x / 10.0**power:g}")
