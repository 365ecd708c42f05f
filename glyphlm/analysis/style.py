"""Titles of columns, colours and markers of arms, in plots and on pages."""

# Column -> axis title.
TITLES = {
    "bits_per_byte": "bits per byte",
    "loss": "loss (nats per token)",
    "tokens": "training tokens",
    "seconds": "seconds of training",
    "flops": "floating-point operations",
    "depth": "layers",
    "percent": "percent",
    "points": "points of BLEU, chrF",
}
# Okabe and Ito's colours without the pale yellow. With four line styles and seven markers (matplotlib's name, and a
# character for the page) arms can be distinguished in grey print and by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B6B6B")
MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("X", "✖"))
