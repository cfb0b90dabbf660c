"""What is written once a release has ended, or ended anew: its report, and the completed evidence bundle."""

from deployments.declared import Declared
from deployments.errors import ContenderError
from platforms.platform import Platform
from tasks.release_record import Release

__all__ = ["Written", "write_end"]


class Written(Declared):
    """Where the report is, and what could not be written: that hides nothing of how the release ended."""

    report: str
    problems: tuple[str, ...] = ()


def write_end(platform: Platform, release: Release) -> Written:
    """Write the report and complete the bundle of a release as it stands; the same again changes nothing."""
    from tasks.evidence import complete_bundle
    from tasks.release_report import write_release_report

    report = write_release_report(platform, release)
    problems = [report.unlogged] if report.unlogged else []
    try:
        complete_bundle(platform, release.model, release)
    except ContenderError as error:
        problems.append(f"the evidence bundle was not completed: {error}")
    return Written(report=str(report), problems=tuple(problems))
