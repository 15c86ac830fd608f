"""What an einsum equation with a kernel says: which axes are summed, which are made."""

from dataclasses import dataclass
from typing import Any

from ltcore.axes import Axis, Labels
from ltcore_keras._layouts import Layout, permuted


class EquationError(Exception):
    """Why an equation is no linear layer; becomes a site's ``reason``."""


def spelt_out(equation: str, ranks: list[int]) -> str:
    """Return ``equation`` with letters for its ellipses, given the ranks of its operands."""
    left, _, right = equation.replace(" ", "").partition("->")
    spare = [chr(code) for code in range(ord("A"), ord("Z") + 1) if chr(code) not in equation]
    terms, hidden = [], ""
    for term, rank in zip(left.split(","), ranks, strict=True):
        count = rank - len(term.replace("...", ""))
        if "..." in term:
            # Ellipses are aligned at their ends, as shapes are in broadcasting.
            letters = "".join(spare[:12][12 - count :])
            hidden = max(hidden, letters, key=len)
            term = term.replace("...", letters)
        terms.append(term)
    return ",".join(terms) + "->" + right.replace("...", hidden)


@dataclass(frozen=True, slots=True)
class Equation:
    """An equation of an input and a kernel, as a linear layer.

    Attributes:
        entering: the letters of the input.
        kernel: the letters of the kernel.
        leaving: the letters of the output.
    """

    entering: str
    kernel: str
    leaving: str

    @classmethod
    def of(cls, layer: Any) -> "Equation":
        """Return the equation of an `EinsumDense`.

        Raises:
            EquationError: it does not multiply with one matrix.
        """
        terms = layer.equation.replace(" ", "").replace("->", ",").split(",")
        entering, kernel, leaving = terms
        letters = [set(term) - {"."} for term in terms]
        if letters[1] & letters[0] & letters[2]:
            raise EquationError("the equation has its own kernel for each place along an axis")
        if letters[1] - letters[0] - letters[2] or letters[0] - letters[1] - letters[2]:
            raise EquationError("the equation sums over an axis of one operand alone")
        found = cls(entering, kernel, leaving)
        if layer.bias_axes and set(layer.bias_axes) != set(found.made):
            raise EquationError("the bias does not cover the axes that the kernel makes")
        return found

    @property
    def summed(self) -> str:
        """The letters that are summed, in the order of the input."""
        return "".join(one for one in self.entering if one in self.kernel)

    @property
    def made(self) -> str:
        """The letters that the kernel adds, in the order of the output."""
        return "".join(one for one in self.leaving if one in self.kernel)

    @property
    def layout(self) -> Layout:
        """The layout of the kernel: a matrix ``(made, summed)``."""
        order = [self.kernel.index(one) for one in self.made + self.summed]
        return permuted(order, len(self.made))

    def axes(self, of: str) -> list[int]:
        """Return where the letters ``of`` are in the kernel."""
        return [self.kernel.index(one) for one in of]

    def entered(self, labels: Labels) -> Axis:
        """Return the axis of all features that enter, given the input's labels."""
        letters = self._spelt(len(labels))[0]
        return tuple(
            atom
            for letter, axis in zip(letters, labels, strict=True)
            if letter in self.kernel
            for atom in axis
        )

    def passing(self, rank: int) -> tuple[int, ...]:
        """Return the axes of an input of ``rank`` that are not summed."""
        letters = enumerate(self._spelt(rank)[0])
        return tuple(axis for axis, letter in letters if letter not in self.kernel)

    def left(self, labels: Labels, made: Labels) -> Labels:
        """Return the output's labels, given the input's and those of the axes that are made."""
        letters, leaving = self._spelt(len(labels))
        known = dict(zip(letters, labels, strict=True)) | dict(zip(self.made, made, strict=True))
        return tuple(known[letter] for letter in leaving)

    def made_sizes(self, shape: tuple[int, ...], rank: int) -> list[int]:
        """Return the sizes of the axes that are made, given the output's shape."""
        leaving = self._spelt(rank)[1]
        sizes = dict(zip(leaving, shape, strict=True))
        return [sizes[letter] for letter in self.made]

    def _spelt(self, rank: int) -> tuple[str, str]:
        whole = spelt_out(
            f"{self.entering},{self.kernel}->{self.leaving}", [rank, len(self.kernel)]
        )
        left, _, right = whole.partition("->")
        return left.split(",")[0], right
