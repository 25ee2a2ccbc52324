"""The table of reason codes in docs/ingestion.md: `python -m tests.reasons_table` writes it from `storage.verdicts`."""

from pathlib import Path

from storage.verdicts import BEHIND, REASONS

PAGE = Path(__file__).parents[1] / "docs" / "ingestion.md"
BEGIN, END = "<!-- reasons: python -m tests.reasons_table -->\n", "<!-- end of reasons -->\n"


def table() -> str:
    """The table as Markdown: every code with its verdict, its sentence and what it depends on."""
    lines = ["| code | verdict | sentence, and what to do | depends on |", "|---|---|---|---|"]
    for code, reason in REASONS.items():
        where = "It" if reason.sentence.startswith("{where}") else "it"
        sentence = reason.sentence.format(where=where, detail="…").replace("|", "\\|")
        again = " Tried again at the next ingest." if reason.transient else ""
        behind = ", ".join(f"`{name}`" for name in BEHIND.get(code, ()))
        lines.append(f"| `{code}` | {reason.verdict} | {sentence}{again} | {behind} |")
    return "\n".join(lines) + "\n"


def page_with_table(text: str) -> str:
    """The page's text with the table as it should be."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
