"""What people look at: figures, tables and explanations, in the reader's language.

`Figure` and `Table` show themselves in a notebook and print as plain text that is the same in every language. The words
are in `labels/<language>.toml`, the drawing is in one module per part of the book: `number` (part I and II), `formats`
(chapter 03), `rounding` (04), `arithmetic` (05), `ranges` (06), `tensor` (part III), `model` and `diagnosis` (part IV).
"""

from qlab.show.arithmetic import lost_updates, stalling_sums, sum_errors
from qlab.show.diagnosis import pareto_front, sensitivity_bars
from qlab.show.figure import Figure
from qlab.show.formats import bit_layouts, density, format_map, number_lines
from qlab.show.language import LANGUAGES, get_language, label, set_language
from qlab.show.model import observer_ranges, scale_history
from qlab.show.number import (
    accuracy_and_size,
    binades,
    digit_with_fewer_words,
    energy,
    number_line,
    roofline,
    spacing,
)
from qlab.show.ranges import gradient_windows, softmax_shift
from qlab.show.rounding import rounding_errors, stochastic_mean
from qlab.show.table import Table, format_table
from qlab.show.tensor import rate_distortion

__all__ = [
    "LANGUAGES", "Figure", "Table", "accuracy_and_size", "binades", "bit_layouts", "density",
    "digit_with_fewer_words", "energy", "format_map", "format_table", "get_language", "gradient_windows", "label",
    "lost_updates", "number_line", "number_lines", "observer_ranges", "pareto_front", "rate_distortion", "roofline",
    "rounding_errors", "scale_history", "sensitivity_bars", "set_language", "softmax_shift", "spacing",
    "stalling_sums", "stochastic_mean", "sum_errors",
]  # fmt: skip
