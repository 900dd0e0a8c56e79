"""Where the text and the lines of a picture are, for tests."""

import itertools
import re

from matplotlib.text import Text
from matplotlib.transforms import Bbox


def text_boxes(figure) -> dict[str, list[Bbox]]:
  """Boxes of all text that is drawn, in pixels, by its words.

  Draws the figure, as the other functions need it.
  """
  figure.draw_without_rendering()
  hidden = {
    label
    for axes in figure.axes
    for axis in (axes.xaxis, axes.yaxis)
    for label, place in zip(axis.get_ticklabels(), axis.get_ticklocs())
    if not min(axis.get_view_interval())
    <= place
    <= max(axis.get_view_interval())
  }
  boxes = {}
  for text in figure.findobj(Text):
    if text.get_visible() and text.get_text().strip() and text not in hidden:
      # A pixel less, since boxes may touch.
      box = text.get_window_extent().padded(-1)
      boxes.setdefault(text.get_text(), []).append(box)
  return boxes


def check_readable(figure) -> set[str]:
  """Checks that no text lies on a line, on other text or outside.

  Returns:
    The words of the picture.
  """
  boxes = text_boxes(figure)
  flat = [(words, box) for words, found in boxes.items() for box in found]
  for (words, box), (others, other) in itertools.combinations(flat, 2):
    assert not box.overlaps(other), f"{words!r} lies on {others!r}"
  for words, box in flat:
    assert figure.bbox.padded(1).contains(*box.min), f"{words!r} is cut off"
    assert figure.bbox.padded(1).contains(*box.max), f"{words!r} is cut off"
  for axes in figure.axes:
    for line in axes.lines:
      path = line.get_path().cleaned(
        transform=line.get_transform(),
        remove_nans=True,
        clip=tuple(axes.bbox.extents),
      )
      for words, box in flat:
        on_line = len(path.vertices) and path.intersects_bbox(box, filled=False)
        assert not on_line, f"{words!r} lies on a line"
  return set(boxes)


def check_axes(figure) -> set[str]:
  """Checks that axes of a kind are written alike; returns the kinds."""
  kinds = set()
  for axes in figure.axes:
    for axis in (axes.xaxis, axes.yaxis):
      words = axis.get_label().get_text()
      ticks = [label.get_text() for label in axis.get_ticklabels()]
      if words.startswith("loss"):
        kinds.add("loss")
        assert words == "loss (nats)"
        assert all(re.fullmatch(r"[-−]?\d+\.\d{3}", tick) for tick in ticks)
      elif "FLOPs)" in words:
        kinds.add("FLOPs")
        assert re.fullmatch(r"training cost \(\$10\^\{\d+\}\$ FLOPs\)", words)
        assert all(re.fullmatch(r"-?[\d.]+", tick) for tick in ticks)
        assert not axis.get_offset_text().get_text()
      elif "step" in words:
        kinds.add("steps")
        assert words == "steps"
        assert all(re.fullmatch(r"[-−]?[\d.]+[kM]?", tick) for tick in ticks)
  return kinds
