"""`ATTRIBUTION.md` beside fetched scans: where they come from, under which licence, and how they want to be cited."""

from storage.documents.fetch_plan import FetchPlan
from tasks.fetch.plan import licences

NAME = "ATTRIBUTION.md"
ARCHIVE_CITATION = (
    "Fedorov, A., Longabaugh, W. J. R., Pot, D., et al. National Cancer Institute Imaging Data Commons: Toward Transparency, "
    "Reproducibility, and Scalability in Imaging Artificial Intelligence. RadioGraphics 43 (2023). https://doi.org/10.1148/rg.230180"
)


def attribution(plan: FetchPlan) -> str:
    """The text of the file, Markdown.

    A citation that the index does not have is named by its DOI; none is asked for over the network.
    """
    lines = [
        f"# Attribution: {plan.selection.collection}",
        "",
        f"{len(plan.series)} DICOM series of {plan.num_patients} patient(s), unchanged, from the NCI Imaging Data Commons "
        f"(https://imaging.datacommons.cancer.gov), collection `{plan.selection.collection}`, selected in {plan.index}. Keep this "
        "file with the data.",
        "",
        "## Licences",
        "",
        "| licence | series | data set |",
        "|---|---|---|",
    ]
    shares = licences(plan.series)
    for share in shares:
        licence = share.licence or "not stated in the index"
        lines.append(f"| {licence} | {share.num_series} | {_link(share.doi)} |")
    if any(share.forbids_commercial_use for share in shares):
        lines += ["", "**NC licences forbid commercial use**, of the data and of what is made from them."]
    lines += ["", "## Citations", ""]
    for doi in sorted({share.doi for share in shares}):
        if citation := plan.citations.get(doi):
            lines.append(f"- {citation}")
        elif doi:
            lines.append(f"- The index has no citation of this data set; its page has it: {_link(doi)}")
        else:
            lines.append("- Series without a DOI in the index: see the page of the collection.")
    lines.append(f"- The archive: {ARCHIVE_CITATION}")
    return "\n".join(lines) + "\n"


def _link(doi: str) -> str:
    return f"https://doi.org/{doi}" if doi else "no DOI in the index"
