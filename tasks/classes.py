"""Classes as specs, labels and prediction logs write them: what is one class to a model is one class to all of them."""

from deployments.contract import ColumnType, Scalar

__all__ = ["class_of"]


def class_of(value: Scalar, declared: ColumnType) -> float | str:
    """What a class is compared by, where its column is declared so.

    Of numbers it is the number, so that 1, "1" and 1.0 are one class; of booleans "true" or "false", which 1 and 0 are
    too; else its text.
    """
    if declared in {ColumnType.NUMBER, ColumnType.INTEGER}:
        return float(value)
    if declared is ColumnType.BOOLEAN and not isinstance(value, str):
        return "true" if value else "false"
    return str(value)
