"""RESULTS.md, in which each benchmark owns the section under its heading."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
NOTES = "### Notes"  # what people wrote below a table; it outlives the table


def machine() -> str:
    """Processor, cores that may be used, and the versions that matter; imports none of them."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning"))
    cores = f"{len(os.sched_getaffinity(0))} cores"
    if threads := os.environ.get("OMP_NUM_THREADS"):
        cores += f", {threads} of them used (OMP_NUM_THREADS)"
    return f"{names[0]}, {cores}; Python {platform.python_version()}, {packages}"


def read_section(heading: str) -> list[str]:
    """The lines under the heading; none if it is not there."""
    return _sections().get(heading, [])


def write_section(heading: str, lines: list[str]) -> None:
    """Replaces the lines under the heading, but for its notes, or adds it at the end; the rest stays as it is."""
    old = read_section(heading)
    notes = old[old.index(NOTES) :] if NOTES in old else []
    sections = _sections() | {heading: ["", *lines, "", *notes]}
    text = "\n\n".join(
        "\n".join([f"## {title}", *body] if title else body).rstrip("\n") for title, body in sections.items()
    )
    part = RESULTS.with_name(f".RESULTS.{os.getpid()}.md")
    part.write_text(text.rstrip("\n") + "\n")
    os.replace(part, RESULTS)


def _sections() -> dict[str, list[str]]:
    """Lines by heading; under "" what comes before the first."""
    sections: dict[str, list[str]] = {"": []}
    title = ""
    for line in RESULTS.read_text().splitlines() if RESULTS.exists() else ["# Results", ""]:
        if line.startswith("## "):
            title = line.removeprefix("## ")
            sections[title] = []
        else:
            sections[title].append(line)
    return sections
