"""Rows of a report on one level, as results.csv and forecast.csv hold them."""

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
# a comparison's columns that a rate has too
_COMPARED = {
    "ci_low": "difference_low",
    "ci_high": "difference_high",
    "lowest": "difference_lowest",
    "highest": "difference_highest",
    "num_degenerate": "difference_num_degenerate",
    "num_unscored": "difference_num_unscored",
}
_FIRST = "name", "kind", "model", "vector", "behavior", "transforms", "alpha", "behaviors", "specificity", "metrics"
_PLACES = {key: place for place, key in enumerate(_FIRST)}


def flatten(row: Row) -> dict[str, Any]:
    """One level of keys: ``bridge_rate``, ``bridge_ci_low``, ..., ``perplexity``; lists joined by a plus sign.

    What is read first comes first: the condition, its rates, its selectivity, its metrics.
    """
    flat: dict[str, Any] = {}
    for key, value in sorted(row.items(), key=lambda item: _PLACES.get(item[0], len(_PLACES))):
        if key in ("behaviors", "classes"):
            for behavior, rate in value.items():
                flat.update({f"{behavior}_{field}": number for field, number in rate.items()})
        elif key == "refusals":
            for name, rate in value.items():
                flat.update({f"{name}_refused_{field}": number for field, number in rate.items()})
        elif key == "metrics":
            flat.update(value)
        elif key == "predicted":
            flat.update({f"predicted_{name}": number for name, number in _flat_prediction(value or {}).items()})
        elif key == "realised":
            flat.update({f"realised_{name}": number for name, number in (value or {}).items()})
        elif key == "comparisons":
            for behavior, found in (value or {}).items():
                numbers = {_COMPARED.get(name, name): number for name, number in found.items() if name != "behavior"}
                flat.update({f"{behavior}_{name}": number for name, number in numbers.items()})
        elif key == "specificity":
            flat.update(_flat_specificity(value or {}))
        elif key == "corrected":
            for behavior, found in (value or {}).items():
                flat.update({f"{behavior}_corrected_{name}": number for name, number in (found or {}).items()})
        elif key == "withheld":
            for name, found in value.items():
                flat.update({f"{name}_withheld_{field}": number for field, number in _flat_withheld(found).items()})
        elif key == "asked":
            flat["asked"], flat["asked_value"] = (value["kind"], value["value"]) if value else (None, None)
        else:
            flat[key] = "+".join(value) if isinstance(value, list) else value
    return flat


def _flat_withheld(found: Mapping[str, Any]) -> dict[str, Any]:
    flat = {key: value for key, value in found.items() if key not in ("lowest", "highest")}
    return flat | {f"{end}_{key}": value for end in ("lowest", "highest") for key, value in found[end].items()}


def _flat_specificity(specificity: Mapping[str, Any]) -> dict[str, Any]:
    flat = {
        f"{behavior}_against_none_{name}": number
        for behavior, shift in specificity.get("shifts", {}).items()
        for name, number in shift.items()
    }
    selectivity = specificity.get("selectivity") or {}
    return {"selectivity" if name == "value" else f"selectivity_{name}": n for name, n in selectivity.items()} | flat


def _flat_prediction(predicted: Mapping[str, Any]) -> dict[str, Any]:
    rates = {**predicted.get("rates", {}), **predicted.get("classes", {})}
    flat = {key: value for key, value in predicted.items() if key not in ("rates", "classes")}
    return {**flat, **{f"{name}_{key}": number for name, rate in rates.items() for key, number in rate.items()}}
