"""The kernel of nuctut.optics against psfmodels, which integrates without its approximation.

    pip install -e '.[bench]'        # or, for the peer alone: pip install psfmodels
    python bench/defocus.py          # seconds

The model of Yang et al. takes the angles of the light for small. The peer (Gibson and Lanni's
model, with air everywhere) does not, so its cone is wider at the same aperture: as wide at that of
BBBC006's objective, 0.45, as the kernel's at 0.5. Ends with status 1 if the widths there differ by
more than a few percent anywhere out of focus.
"""

import sys

import numpy as np
from rich.console import Console
from rich.table import Table

from nuctut import optics

try:
    import psfmodels
except ImportError as error:
    sys.exit(f"{error}: the peer is missing; install it with: pip install psfmodels")

GOAL = 0.04  # of the width
SIZE = 61  # pixels
DEPTHS = (4.0, 8.0, 16.0, 32.0)
AIR = {name: 1.0 for name in ("ns", "ni", "ni0", "ng", "ng0")}


def width(kernel: np.ndarray) -> float:
    """Root mean square distance of the light from the middle, in pixels."""
    squares = ((np.indices(kernel.shape) - SIZE // 2) ** 2).sum(0)
    return float(np.sqrt((kernel * squares).sum() / kernel.sum()))


def main() -> None:
    ours = [optics.kernel(z, SIZE) for z in DEPTHS]
    scope, worst = optics.MICROSCOPE, 0.0
    how = {"nx": SIZE, "dxy": scope.pixel_size, "wvl": scope.wavelength, "model": "scalar"}
    table = Table("z, µm", "peer's aperture", "width", "peer's", "correlation")
    for aperture in (0.45, 0.5):
        theirs = psfmodels.make_psf(np.array(DEPTHS), NA=aperture, pz=0.0, **how, **AIR)
        for z, one, other in zip(DEPTHS, ours, theirs, strict=True):
            here, there = width(one), width(other)
            alike = np.corrcoef(one.ravel(), other.ravel())[0, 1]
            table.add_row(f"{z:g}", f"{aperture}", f"{here:.2f}", f"{there:.2f}", f"{alike:.3f}")
            if aperture == 0.45:
                worst = max(worst, abs(here / there - 1))
    Console(width=100).print(table)
    if worst > GOAL:
        sys.exit(f"at an aperture of 0.45 the widths differ by {worst:.1%}, not {GOAL:.0%} at most")


if __name__ == "__main__":
    main()
