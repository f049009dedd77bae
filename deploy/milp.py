"""Small programs of numbers between 0 and 1, some of them whole, solved by HiGHS (Huangfu and Hall 2018).

By HiGHS's own package: scipy brings the same solver, but takes 0.8 seconds of processor to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import numpy as np

from deploy.errors import BackendError
from deploy.progress import stdout_silenced

_GAP = 1e-7


class Rows:
    """A sparse matrix row by row, with bounds of each row's sum."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.columns: list[int] = []
        self.values: list[float] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def add(self, row: Mapping[int, float], low: float, high: float) -> None:
        """A row by column."""
        self.starts.append(len(self.columns))
        self.columns += row.keys()
        self.values += row.values()
        self.low.append(low)
        self.high.append(high)

    def with_row(self, row: Mapping[int, float], high: float) -> Rows:
        """These rows and one more."""
        new = deepcopy(self)
        new.add(row, -np.inf, high)
        return new


def least_cost(
    costs: np.ndarray, rows: Rows, *, whole: int, seconds: float, finding: str, hint: str
) -> np.ndarray:
    """Numbers between 0 and 1, (n,), the first ``whole`` of them 0 or 1, that keep ``rows`` and cost least by
    ``costs``, (n,).

    The best that was found where ``seconds`` did not suffice to prove it. Raises BackendError with ``hint``
    where nothing was found; ``finding`` says what then failed: "choosing precisions".
    """
    import highspy

    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = len(costs), len(rows.low)
    program.col_cost_ = np.asarray(costs, np.float64)
    program.col_lower_, program.col_upper_ = np.zeros(len(costs)), np.ones(len(costs))
    program.row_lower_, program.row_upper_ = np.array(rows.low), np.array(rows.high)
    matrix = program.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kRowwise
    matrix.start_ = np.array([*rows.starts, len(rows.columns)], np.int32)
    matrix.index_, matrix.value_ = np.array(rows.columns, np.int32), np.array(rows.values)
    kinds = highspy.HighsVarType
    program.integrality_ = [kinds.kInteger] * whole + [kinds.kContinuous] * (len(costs) - whole)
    solver = highspy.Highs()
    for option, value in (("output_flag", False), ("time_limit", seconds), ("mip_rel_gap", _GAP)):
        solver.setOptionValue(option, value)
    with stdout_silenced():
        solver.passModel(program)
        solver.run()
    if solver.getInfo().primal_solution_status != int(highspy.SolutionStatus.kSolutionStatusFeasible):
        status = solver.modelStatusToString(solver.getModelStatus())
        raise BackendError(f"{finding} failed: the solver says '{status}'", hint=hint)
    return np.array(solver.getSolution().col_value)
