"""JSON that is small and still has readable differences: one element of a top-level list a line."""

import json
from pathlib import Path


def seven_digits(value: float) -> float:
    """`value` rounded to 7 significant digits, an f32's."""
    return float(f"{float(value):.7g}")


def write(path: Path, document: dict) -> None:
    """Writes `document` with each key on its line, and each element where a value is a list of objects."""

    def dumps(value) -> str:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    entries = []
    for key, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            entries.append(f"{dumps(key)}:[\n" + ",\n".join(dumps(element) for element in value) + "\n]")
        else:
            entries.append(f"{dumps(key)}:{dumps(value)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(entries) + "\n}\n", encoding="utf-8")
