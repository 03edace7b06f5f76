"""The colours and markers of all figures. Figures are made without pyplot, so that nothing global is touched."""

from __future__ import annotations

# Okabe & Ito's palette, in an order that keeps neighbours apart for colour-blind readers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dvph"
